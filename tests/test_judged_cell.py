"""`evaluate=alpaca_eval`: a cell whose model answers and whose judge compares, on the tiny model and on loopback."""

import csv
import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import train
from judge_server import JudgeServer
from test_config import refused

from paft.evaluate.results import Results
from paft.graph.build import build

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("alpaca_eval") is None, reason="the package alpaca-eval is not installed"
)
KEY = "sk-secret-0123456789"
ASKED = [f"Say the number {number}." for number in range(6)]
SMALL = (
    "experiment=smoke",
    "paradigm=base",
    "evaluate=alpaca_eval",
    "~evaluate.tasks.lc_win_rate",
    "evaluate.sampling.max_new_tokens=8",
    "evaluate.batch_size=1",
    "trainer.progress_bar=false",
    "logger=csv",
)


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    path = tmp_path / "reference.json"
    rows = [
        {"instruction": text, "output": number * "A number.", "generator": "gpt"}
        for number, text in enumerate(ASKED, 1)
    ]
    path.write_text(json.dumps(rows))
    return path


def run(tmp_path: Path, reference: Path, *words: str, **env: str) -> Any:
    return train(
        *SMALL,
        f"evaluate.reference.file={reference}",
        f"logs={tmp_path / 'logs'}",
        *words,
        cwd=tmp_path,
        **env,
    )


def openai(server: JudgeServer) -> tuple[str, ...]:
    return ("judge=openai", f"judge.base_url={server.url}", "judge.model=toy", "judge.backoff_seconds=0.01")


def only(tmp_path: Path, stage: str) -> Path:
    (folder,) = (path.parent for path in (tmp_path / "logs/stages" / stage).glob("*/stage.json"))
    return folder


def test_answers_are_judged_once_and_scored(tmp_path, reference):
    with JudgeServer(faults=[429, "dropped"], key=KEY) as server:
        done = run(tmp_path, reference, *openai(server), OPENAI_API_KEY=KEY)
        assert done.returncode == 0, done.stderr
        calls = len(server.calls)
        for stage in ("judge", "evaluate"):
            shutil.rmtree(tmp_path / "logs/stages" / stage)
        again = run(tmp_path, reference, *openai(server), OPENAI_API_KEY=KEY)
        assert again.returncode == 0, again.stderr

    assert calls == len(ASKED) + 2 == len(server.calls)
    outputs = json.loads((only(tmp_path, "generate") / "outputs.json").read_text())
    annotations = json.loads((only(tmp_path, "judge") / "annotations.json").read_text())
    assert [row["instruction"] for row in outputs] == ASKED
    assert [row["output_2"] for row in annotations] == [row["output"] for row in outputs]
    expected = sum(row["preference"] - 1 for row in annotations) / len(ASKED)
    assert Results.read(only(tmp_path, "evaluate")).tasks["win_rate"].score == pytest.approx(expected)
    assert json.loads((only(tmp_path, "judge") / "stage.json").read_text())["metrics"]["cached"] == len(ASKED)
    (row,) = csv.DictReader((tmp_path / "logs/report/results.csv").open())
    assert float(row["win_rate"]) == pytest.approx(expected) and float(row["win_rate_stderr"]) > 0
    assert row["evaluate"] == "alpaca_eval by toy" and row["judge.model"] == "toy"
    assert "win rate" in (tmp_path / "logs/report/index.html").read_text()
    texts = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(KEY.encode() in text for text in texts)
    assert KEY not in done.stdout + done.stderr + again.stdout + again.stderr


def test_judge_that_breaks_down_keeps_answers_and_the_command_goes_on(tmp_path, reference):
    with JudgeServer(faults=[500] * 3) as server:
        done = run(tmp_path, reference, *openai(server), "judge.retries=2", "judge.concurrency=1")
    assert done.returncode == 2 and "1 of 6 calls of the judge failed" in done.stderr
    with JudgeServer() as server:
        done = run(tmp_path, reference, *openai(server))

    assert done.returncode == 0, done.stderr
    assert len(server.calls) == 1


def test_public_judgements_need_no_endpoint(tmp_path, reference):
    with JudgeServer() as server:
        assert run(tmp_path, reference, *openai(server)).returncode == 0
    file = tmp_path / "annotations.json"
    shutil.copy(only(tmp_path, "judge") / "annotations.json", file)

    done = run(tmp_path, reference, "judge=annotations", f"judge.file={file}")

    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "logs/report/results.csv").open()))
    assert len(rows) == 2 and len({row["win_rate"] for row in rows}) == 1


def test_plan_says_calls_and_price_before(tmp_path, reference):
    done = run(tmp_path, reference, "judge=openai", "evaluate.limit=4", "plan=true")

    assert done.returncode == 0, done.stderr
    assert "judge: 4 calls of gpt-4-1106-preview with 924 tokens each, 0.04 USD" in done.stdout
    assert ", ~0.04 USD" in done.stdout
    assert "generate: 4 answers" in done.stdout
    assert not (tmp_path / "logs/stages").exists()


BEFORE_A_MODEL = {
    "no endpoint": (("judge=openai", "judge.base_url=http://127.0.0.1:9"), "cannot be reached"),
    "no key": (("judge=openai",), "needs a key: set OPENAI_API_KEY"),
    "no judgements": (("judge=annotations", "judge.file=none.json"), "none.json is not a file"),
    "wrong columns": (("judge=annotations", "judge.file=reference.json"), "row 1 has no 'output_1'"),
    "no judge": ((), "evaluate=alpaca_eval needs a judge"),
    "no reference": (("judge=openai", "evaluate.reference.file=none.json"), "none.json is not a file"),
    "no model": (("judge=local", "judge.path=."), "is not a model folder"),
}


@pytest.mark.parametrize("wrong", BEFORE_A_MODEL)
def test_what_is_lacking_is_said_before_any_stage(tmp_path, reference, wrong, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    words, said = BEFORE_A_MODEL[wrong]

    done = run(tmp_path, reference, *words)

    assert done.returncode == 2, done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.glob("logs/stages/*/*/stage.json"))


def test_length_controlled_column_is_refused_without_its_data(tmp_path, reference):
    with JudgeServer() as server:
        words = [word for word in SMALL if not word.startswith("~")]
        done = train(
            *words,
            f"evaluate.reference.file={reference}",
            f"logs={tmp_path / 'logs'}",
            *openai(server),
            cwd=tmp_path,
        )

    assert done.returncode == 2
    assert "~evaluate.tasks.lc_win_rate leaves the column out" in done.stderr
    assert not server.calls


def test_judge_without_what_it_could_judge_is_refused(compose):
    assert "nothing to judge in evaluate=demo" in refused(compose, "judge=openai")
    assert "evaluate.tasks.arc.task must be alpaca_eval" in refused(
        compose, "evaluate=alpaca_eval", "judge=openai", "++evaluate.tasks={arc:{task:arc_easy,metric:acc}}"
    )


# --- keys ----------------------------------------------------------------------------------------------


def stages(config) -> dict[str, str]:
    return {stage.name: stage.key for stage in build(config).walk()}


@pytest.fixture
def config(compose, reference):
    return compose(*SMALL, f"evaluate.reference.file={reference}", "judge=openai", "judge.model=toy")


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


def test_sampling_is_in_the_key_of_the_answers_and_the_judge_in_that_of_judgements(config):
    plain = stages(config)
    assert list(plain) == ["generate", "judge", "evaluate"]
    warm = replace(config.evaluate, sampling=replace(config.evaluate.sampling, temperature=0.7))
    assert changed(plain, stages(replace(config, evaluate=warm))) == set(plain)
    other = replace(config, judge=replace(config.judge, model="other"))
    assert changed(plain, stages(other)) == {"judge", "evaluate"}


def test_where_a_judge_is_asked_and_where_files_lie_is_in_no_key(config, reference, tmp_path):
    plain = stages(config)
    elsewhere = replace(config.judge, base_url="http://elsewhere/v1", concurrency=1, retries=0)
    assert stages(replace(config, judge=elsewhere)) == plain
    copy = tmp_path / "copy.json"
    shutil.copy(reference, copy)
    moved = replace(config.evaluate, reference=replace(config.evaluate.reference, file=str(copy)))
    assert stages(replace(config, evaluate=moved)) == plain
    copy.write_text(copy.read_text().replace("A number", "One"))
    assert changed(plain, stages(replace(config, evaluate=moved))) == set(plain)


# --- MT-Bench ------------------------------------------------------------------------------------------

PROMPT = "Rate.{math} {question}{question_1}|{question_2} {answer}{answer_1}|{answer_2}"


@pytest.fixture
def mt_bench(tmp_path: Path) -> Path:
    """FastChat's three files with two questions, of which one has a right answer."""
    folder = tmp_path / "data"
    (folder / "mt_bench/reference_answer").mkdir(parents=True)
    questions = [
        {"question_id": 81, "category": "writing", "turns": ["Write a line.", "Write another."]},
        {"question_id": 111, "category": "math", "turns": ["1 + 1?", "And 1 more?"]},
    ]
    names = [f"single-{math}v1{turns}" for math in ("", "math-") for turns in ("", "-multi-turn")]
    prompts = [
        {
            "name": name,
            "system_prompt": name,
            "prompt_template": PROMPT.replace("{math}", " {ref_answer_1}" * ("math" in name)),
        }
        for name in names
    ]
    answers = [{"question_id": 111, "model_id": "gpt-4", "choices": [{"turns": ["two", "three"]}]}]
    contents = {
        "judge_prompts": prompts,
        "mt_bench/question": questions,
        "mt_bench/reference_answer/gpt-4": answers,
    }
    for name, rows in contents.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


def mt_words(tmp_path: Path, folder: Path, *words: str) -> tuple[str, ...]:
    small = [word.replace("alpaca_eval", "mt_bench") for word in SMALL if not word.startswith("~")]
    return (*small, f"evaluate.questions.folder={folder}", f"logs={tmp_path / 'logs'}", *words)


def test_mt_bench_rates_both_turns(tmp_path, mt_bench):
    ratings = {
        "single-v1": 8,
        "single-v1-multi-turn": 4,
        "single-math-v1": 10,
        "single-math-v1-multi-turn": 2,
    }

    with JudgeServer(
        says=lambda body: f"Well. Rating: [[{ratings[body['messages'][0]['content']]}]]"
    ) as server:
        done = train(*mt_words(tmp_path, mt_bench, *openai(server)), cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    tasks = Results.read(only(tmp_path, "evaluate")).tasks
    assert {name: task.score for name, task in tasks.items()} == {
        "mt_bench": 6,
        "mt_bench_1": 9,
        "mt_bench_2": 3,
    }
    asked = {body["messages"][0]["content"]: body["messages"][1]["content"] for body in server.calls}
    (first, second) = json.loads((only(tmp_path, "generate") / "outputs.json").read_text())[1]["answers"]
    assert asked["single-math-v1"].startswith("Rate. two 1 + 1?")
    assert asked["single-math-v1-multi-turn"].endswith(f" {first}{first}|{second}")


def test_mt_bench_without_its_files_is_refused(tmp_path, mt_bench, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    (mt_bench / "mt_bench/question.jsonl").write_text(
        '{"question_id": 1, "category": "math", "turns": ["one"]}\n'
    )
    with JudgeServer() as server:
        done = train(*mt_words(tmp_path, mt_bench, *openai(server)), cwd=tmp_path)
    assert done.returncode == 2 and "question 1 must have two turns" in done.stderr
    (mt_bench / "judge_prompts.jsonl").unlink()
    with JudgeServer() as server:
        done = train(*mt_words(tmp_path, mt_bench, *openai(server)), cwd=tmp_path)
    assert done.returncode == 2 and "judge_prompts.jsonl is not a file" in done.stderr
