"""`python -m paft.judge run` end to end: AlpacaEval's prompt, its draw of who is first, its reading of the answer."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from judge_server import JudgeServer
from test_judge_score import OUTPUTS, PUBLIC, REFERENCE, SHARED, refused

from paft.config.judge import ANNOTATOR, AnnotationsJudge, OpenAIJudge
from paft.judge.__main__ import judge_config, main
from paft.judge.judging import annotate, usd
from paft.judge.outputs import Pair, pairs, read_annotations, read_outputs
from paft.judge.prompts import Annotator, switched

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("alpaca_eval") is None, reason="the package alpaca-eval is not installed"
)
KEY = "sk-secret-0123456789"


@pytest.fixture
def words(tmp_path):
    def of(server: JudgeServer, **files: Any) -> list[str]:
        said = ["run", "--json", "--store", str(tmp_path / "store"), "--data", str(tmp_path)]
        for name, rows in ({"outputs": OUTPUTS, "reference": REFERENCE} | files).items():
            (tmp_path / f"{name}.json").write_text(json.dumps(rows))
            said += [f"--{name}", str(tmp_path / f"{name}.json")]
        endpoint = [f"judge.base_url={server.url}", "judge.model=toy", "judge.backoff_seconds=0.01"]
        endpoint += ["judge.input_price=1", "judge.output_price=2"]
        return [*said, "--annotations", str(tmp_path / "annotations.json"), "judge=openai", *endpoint]

    return of


def figures(capsys, words: list[str]) -> dict[str, Any]:
    main(words)
    return json.loads(capsys.readouterr().out)


def test_judges_each_pair_that_differs_once(capsys, tmp_path, words):
    with JudgeServer(faults=[429, 500, "malformed", "dropped"]) as server:
        first = figures(capsys, words(server))
        calls = len(server.calls)
        second = figures(capsys, words(server))

    annotations = read_annotations(tmp_path / "annotations.json", "x")
    assert calls == 2 + 4 == len(server.calls)
    assert (first["calls"], first["cached"], second["calls"], second["cached"]) == (2, 0, 0, 2)
    assert first["win_rate"] == second["win_rate"]
    # the judge likes the longer one: (2 + 1) / (2 + 6 + 2) and (13 + 1) / (13 + 7 + 2); the third pair is equal
    assert [a["preference"] for a in annotations] == pytest.approx([1.3, 1 + 14 / 22, 1.5])
    assert first["n_draws"] == 1 and first["usd"] > 0
    assert {a["generator_1"] for a in annotations} == {"reference"} and annotations[0][
        "generator_2"
    ] == "mine"


def test_request_is_that_of_the_annotator(words, capsys):
    with JudgeServer() as server:
        figures(capsys, words(server))

    body = server.calls[0]
    asked = {
        name: body[name]
        for name in ("model", "max_tokens", "temperature", "logprobs", "top_logprobs", "top_p")
    }
    assert asked == {
        "model": "toy", "max_tokens": 1, "temperature": 1, "logprobs": True, "top_logprobs": 5, "top_p": 1.0
    }  # fmt: skip
    assert [message["role"] for message in body["messages"]] == ["system", "user"]


def test_plan_says_calls_and_price_and_asks_nothing(capsys, words):
    with JudgeServer() as server:
        planned = figures(capsys, [*words(server), "plan=true"])
        figures(capsys, words(server))
        later = figures(capsys, [*words(server), "plan=true"])

    assert planned["calls"] == 2 and planned["usd"] > 0 and planned["input_tokens"] > 300
    assert (later["calls"], later["cached"]) == (0, 2)


def test_judge_without_log_probabilities_counts_by_its_word(capsys, tmp_path, words):
    with JudgeServer(logprobs=False) as server:
        counted = figures(capsys, words(server))

    assert [a["preference"] for a in read_annotations(tmp_path / "annotations.json", "x")] == [1, 2, 1.5]
    assert counted["without_logprobs"] == 2


def test_text_of_an_answer_that_looks_like_a_place_is_left_as_it_is():
    pair = Pair("Fill {output_1} in", "<|im_end|>", "{instruction}")

    content = Annotator(ANNOTATOR).question(pair).messages[-1]["content"]

    assert '"instruction": """Fill {output_1} in"""' in content
    assert '"output": """{instruction}"""' in content and '"output": """<|im_end|>"""' in content


WRONG = {
    "no judge": (["judge.model=x"], "give judge=NAME, of openai, local, annotations"),
    "unknown judge": (["judge=gpt"], "judge must be one of openai, local, annotations, got 'gpt'"),
    "unknown key": (["judge=openai", "judge.url=x"], "judge.url: Key 'url' not in 'OpenAIJudge'"),
    "wrong type": (["judge=openai", "judge.concurrency=many"], "judge.concurrency: Value 'many'"),
    "out of range": (["judge=openai", "judge.retries=-1"], "judge.retries must be 0 or more, got -1"),
    "no address": (["judge=openai", "judge.base_url=x"], "judge.base_url must be http://... or https://..."),
    "unknown annotator": (
        ["judge=openai", "judge.annotator=chatgpt"],
        "judge.annotator must be one of gpt4_turbo_logprob, weighted",
    ),
    "no file": (["judge=annotations", "judge.file=none.json"], "judge.file none.json is not a file"),
    "no folder": (["judge=local", "judge.path=none"], "none is not a model folder"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_judges_are_refused(capsys, words, wrong):
    changed, said = WRONG[wrong]
    with JudgeServer() as server:
        files = words(server)
        message = refused(capsys, [*files[: files.index("judge=openai")], *changed])

    assert said in message
    assert not server.calls


def test_key_reaches_no_output_of_the_process(tmp_path, words, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with JudgeServer(key=KEY, faults=[500, "dropped"]) as server:
        command = [sys.executable, "-m", "paft.judge", *words(server)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stderr
    assert KEY not in done.stdout + done.stderr
    assert not any(KEY in path.read_text() for path in tmp_path.rglob("*") if path.is_file())


def test_killed_process_loses_no_more_than_the_call_under_way(tmp_path, words):
    texts = [f"Say {number}." for number in range(12)]
    mine, theirs = ([{"instruction": t, "output": who + t} for t in texts] for who in ("a", "bb"))

    def slowly(body) -> float:
        time.sleep(0.2)
        return 0.5

    with JudgeServer(slowly) as server:
        command = [sys.executable, "-m", "paft.judge"]
        command += [*words(server, outputs=mine, reference=theirs), "judge.concurrency=1"]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
        while len(server.calls) < 4:
            time.sleep(0.01)
        process.kill()
        process.wait()
        before = len(server.calls)
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    assert before < 12 and done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["cached"] >= before - 1 and figures["calls"] + figures["cached"] == 12


# --- what is public -------------------------------------------------------------------------------------


@PUBLIC
@pytest.mark.parametrize("model", ["phi-2", "gemma-2b-it"])
def test_public_answers_of_the_judge_give_the_public_preferences(model):
    """Every answer of GPT-4 Turbo, read by us under our draw of who is first."""
    rows = read_annotations(SHARED / f"annotations_{model}.json", "x")
    judged = [row for row in rows if row.get("raw_completion")]
    annotator = Annotator(ANNOTATOR)

    ours = [annotator.preference(pair_of(row), row["raw_completion"]) for row in judged]

    assert len(judged) > 795
    # the files have ten digits
    assert ours == pytest.approx([row["preference"] for row in judged], abs=1e-9)
    assert 0.4 < sum(switched(row["instruction"]) for row in judged) / len(judged) < 0.6


@PUBLIC
def test_public_judgements_are_found_by_their_texts(tmp_path):
    outputs = read_outputs(SHARED / "outputs_phi-2.json", "x")
    reference = read_outputs(SHARED / "reference_outputs_gpt4_1106_preview.json", "x")
    file = SHARED / "annotations_phi-2.json"

    judged = annotate(pairs(outputs, reference), AnnotationsJudge(file=str(file)), tmp_path)

    public = {row["instruction"]: row["preference"] for row in read_annotations(file, "x")}
    assert {row["instruction"]: row["preference"] for row in judged.rows} == public
    assert judged.counts == {"judged": 803, "unreadable": 0}


def pair_of(row: dict[str, Any]) -> Pair:
    return Pair(row["instruction"], row["output_1"], row["output_2"])


def test_judgements_of_other_answers_are_refused(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(json.dumps([{"instruction": "a", "output_1": "b", "output_2": "c", "preference": 1}]))

    with pytest.raises(ValueError, match="has no judgement of 1 of 2 answers, the first to 'd'"):
        annotate([Pair("a", "b", "c"), Pair("d", "e", "f")], AnnotationsJudge(file=str(file)), tmp_path)


def test_judge_of_the_command_line_is_typed():
    judge = judge_config(
        ["judge=openai", "judge.model=a/b", "judge.requests_per_minute=60", "judge.input_price=null"]
    )

    assert isinstance(judge, OpenAIJudge)
    assert (judge.model, judge.requests_per_minute, judge.input_price) == ("a/b", 60, None)
    assert Path(judge.base_url).name == "v1"


def test_price_is_that_of_the_list_unless_one_is_given():
    def price(*words: str) -> float | None:
        judge = judge_config(["judge=openai", *words])
        assert isinstance(judge, OpenAIJudge)
        return usd(judge, 1_000_000, 1_000)

    assert price() == pytest.approx(10.03)
    assert price("judge.input_price=2") == pytest.approx(2.03)
    assert price("judge.model=mine") is None
    assert price("judge.model=mine", "judge.input_price=0", "judge.output_price=0") == 0
