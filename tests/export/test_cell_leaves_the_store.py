"""`python -m paft.export` and `python -m paft.chat`: what a finished cell leaves the store as, end to end."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, train
from hub_server import hub_server
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, pipeline

from paft.chat.__main__ import main as chat
from paft.command.finished import finished_cell
from paft.export.__main__ import main as export
from paft.export.gguf import CONVERTER
from paft.files.jsonfile import read_object

ADAPTER = ("merge=task_arithmetic", "merge.output=adapter")


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> Path:
    """A merged cell, its base, and the same branches merged into an adapter."""
    folder = tmp_path_factory.mktemp("cell")
    for words in (["-m", "paradigm=parallel,base", "merge=ties,task_arithmetic"], ADAPTER):
        done = train("experiment=smoke", *words, "logger=csv", f"logs={folder / 'logs'}", cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder / "logs"


@pytest.fixture
def words(logs, tmp_path, monkeypatch) -> Callable[..., list[str]]:
    """The words of the cell, with changes."""
    monkeypatch.chdir(tmp_path)
    return lambda *more: ["experiment=smoke", "logger=csv", f"logs={logs}", *more]


def refusal(
    run: Callable[[list[str]], None], capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run(arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err


# --- the store ----------------------------------------------------------------------------------------


def test_every_merge_of_the_store_was_proved(logs):
    proofs = [
        read_object(path)["metrics"]["proof"] for path in sorted(logs.glob("stages/merge/*/stage.json"))
    ]

    assert len(proofs) == 3
    for proof in proofs:
        assert proof["max_logit_difference"] <= proof["bound"] < proof["logit_change"]


def test_adapter_cell_has_the_scores_of_the_merged_model(words):
    """Exact factors, added to a float32 base: the weights differ in the last place."""
    model, adapter = (finished_cell(words(*w)).require_scores() for w in (ADAPTER[:1], ADAPTER))

    one, other = (read_object(folder / "results.json")["tasks"] for folder in (model, adapter))
    for column in one:
        assert one[column]["score"] == pytest.approx(other[column]["score"], abs=1e-3), column
    assert read_object(adapter / "merge.json")["adapter_error"] < 1e-6
    assert not list(adapter.rglob("*.safetensors"))  # the sum it was scored as is gone


# --- export -------------------------------------------------------------------------------------------


def test_folder_is_a_model_with_its_card(words, logs, tmp_path, capsys):
    export([*words(), "--to", "out"])
    merged = logs / "stages" / "merge" / finished_cell(words()).stage.inputs["model"].key

    files = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    assert {"README.md", "model.safetensors", "chat_template.jinja", "generation_config.json"} <= files.keys()
    assert not {"stage.json", "merge.json"} & files.keys()
    assert all((merged / name).read_bytes() == raw for name, raw in files.items() if name != "README.md")
    answer = pipeline("text-generation", "out", max_new_tokens=4)([{"role": "user", "content": "Hi"}])
    assert answer[0]["generated_text"][-1]["role"] == "assistant"
    assert capsys.readouterr().out.startswith("out: README.md")


def test_card_says_what_the_store_knows(words, logs):
    export([*words(), "--to", "out"])
    card, cell = ModelCard.load("out/README.md"), finished_cell(words())
    results = read_object(cell.require_scores() / "results.json")

    assert (
        card.data.license == "other" and "do not state one" in card.text
    )  # a model made on the spot has none
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "text-generation"
    assert {"paft", "merge", "lora", "sft", "dpo", "ties"} <= set(card.data.tags)
    assert "base_model" not in card.data.to_dict()  # of no name that the hub knows
    for stage in cell.stage.walk():
        assert f"{stage.name} | {stage.key}" in card.text
    for column, task in results["tasks"].items():
        shown = f"{100 * task['score']:.2f}" if task["higher_is_better"] else f"{task['score']:.3f}"
        assert column.replace("_", " ") in card.text and shown in card.text
    assert "± " in card.text and "its base" in card.text
    assert "    python train.py experiment=smoke logger=csv\n" in card.text  # of no folder of this machine
    assert read_object(cell.require_scores() / "merge.json")["variant"] in card.text.replace("\\", "")


def test_licence_is_the_bases(words, tmp_path, monkeypatch):
    base = finished_cell(words()).base
    for name, text in {"README.md": "---\nlicense: apache-2.0\n---\n", "LICENSE": "the text"}.items():
        (base / name).write_text(text)
    try:
        export([*words(), "--to", "out"])
    finally:
        for name in ("README.md", "LICENSE"):
            (base / name).unlink()

    card = ModelCard.load("out/README.md")
    assert card.data.license == "apache-2.0" and "states apache-2.0" in card.text
    assert Path("out/LICENSE").read_text() == "the text"


def test_adapter_is_exported_as_one(words):
    from peft import PeftModel

    export([*words(*ADAPTER), "--to", "out"])
    base = AutoModelForCausalLM.from_pretrained(finished_cell(words()).base)

    assert isinstance(PeftModel.from_pretrained(base, "out"), PeftModel)
    card = ModelCard.load("out/README.md")
    assert card.data.library_name == "peft" and "AutoPeftModelForCausalLM" in card.text
    assert {"adapter_config.json", "chat_template.jinja", "tokenizer.json"} <= {
        p.name for p in Path("out").iterdir()
    }


def test_card_of_branches_that_were_taken(words, logs, tmp_path):
    stages = finished_cell(words()).stage.inputs["model"].inputs
    places = [f"{name}.adapter={logs}/stages/{name}/{stage.key}/adapter" for name, stage in stages.items()]
    taken = ["experiment=smoke", "logger=csv", "logs=taken", "merge=linear", *places]
    assert train(*taken, cwd=tmp_path).returncode == 0

    export([*taken, "--to", "out"])

    text = ModelCard.load("out/README.md").text
    assert "| taken | adapter | adapter |" in text and "merged by Linear" in text


def test_deleted_model_is_merged_again(words, logs):
    export([*words(), "--to", "before"])
    cell = finished_cell(words("merge.keep=false"))
    merge = cell.stage.inputs["model"]
    cell.store.drop(merge)

    export([*words("merge.keep=false"), "--to", "after"])

    before, after = (Path(name, "model.safetensors").read_bytes() for name in ("before", "after"))
    assert before == after and not cell.store.complete(merge)  # and deleted again
    export([*words(), "--to", "again"])
    assert cell.store.complete(merge)


# --- what cannot be exported ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["lambda=0.5"], "`python train.py experiment=smoke logger=csv logs="),
        (["lambda=1e-4,1e-3"], "lambda=1e-4,1e-3 is a list of cells; name one of them"),
        (["merge=nothing"], "Could not find 'merge/nothing'"),
        (["merge.density=2"], "merge.density must be in (0, 1]"),
        (["paradigm=base"], "paradigm=base has no model of its own to export"),
    ],
)
def test_cell_that_cannot_be_exported(words, capsys, more, said):
    error = refusal(export, capsys, [*words(*more), "--to", "out"])

    assert error.startswith("error: ") and said in error and "Traceback" not in error
    assert not Path("out").exists()


def test_folder_with_anything_in_it_is_left_alone(words, capsys):
    Path("out").mkdir()
    Path("out/mine.txt").write_text("mine")

    assert "holds mine.txt" in refusal(export, capsys, [*words(), "--to", "out"])
    assert [path.name for path in Path("out").iterdir()] == ["mine.txt"]


# --- GGUF and the hub ---------------------------------------------------------------------------------

SCRIPT = """
import pathlib, sys
folder, flag, out = sys.argv[1:]
assert flag == "--outfile" and pathlib.Path(folder, "model.safetensors").is_file()
if {fails}: sys.exit("this architecture is not supported")
pathlib.Path(out).write_bytes(b"GGUF")
"""


@pytest.mark.parametrize("fails", [False, True])
def test_llama_cpps_converter_is_run_where_it_is(words, tmp_path, monkeypatch, capsys, fails):
    """The script itself is not installed here: one of its name that takes what it takes."""
    (tmp_path / "llama.cpp").mkdir()
    (tmp_path / "llama.cpp" / CONVERTER).write_text(SCRIPT.format(fails=fails))
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path / "llama.cpp"))

    if fails:
        error = refusal(export, capsys, [*words(), "--to", "out", "--gguf"])
        assert "this architecture is not supported" in error and not Path("out").exists()
    else:
        export([*words(), "--to", "out", "--gguf"])
        assert Path("out/model.gguf").read_bytes() == b"GGUF"


def test_without_the_converter_it_is_said_how_to_get_it(words, monkeypatch, capsys):
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    error = refusal(export, capsys, [*words(), "--to", "out", "--gguf"])

    assert CONVERTER in error and "git clone" in error and not Path("out").exists()


@pytest.mark.parametrize(
    ("repo", "token", "said"),
    [
        ("me/model", "", "--push needs a token with write access in the environment: HF_TOKEN=..."),
        ("model", "hf_x", "--push must name a repository as user/name, got 'model'"),
        ("me/../model", "hf_x", "--push must name a repository as user/name"),
    ],
)
def test_what_cannot_be_pushed_is_refused_before_anything_is_written(
    words, monkeypatch, capsys, repo, token, said
):
    monkeypatch.setenv("HF_TOKEN", token)

    assert said in refusal(export, capsys, [*words(), "--to", "out", "--push", repo])
    assert not Path("out").exists()


def pushed(words: list[str], cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the hub's library reads its settings when it is imported."""
    command = [sys.executable, "-m", "paft.export", *words, "--to", "out", "--push", "me/model"]
    settings = os.environ | {"HF_TOKEN": "hf_secret", "PYTHONPATH": str(ROOT / "src")} | env
    return subprocess.run(command, cwd=cwd, env=settings, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("flags", [[], ["--public"]])
def test_upload_is_the_folder_and_private_unless_said(words, tmp_path, flags):
    with hub_server() as hub:
        done = pushed([*words(), *flags], tmp_path, HF_ENDPOINT=hub.address, HF_HUB_OFFLINE="0")

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"pushed to {hub.address}/me/model"
    assert hub.files == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert [made.get("visibility") for made in hub.created] == ["public" if flags else "private"]
    assert hub.tokens == {"Bearer hf_secret"} and "hf_secret" not in done.stdout + done.stderr
    assert 'pipeline("text-generation", "me/model")' in hub.files["README.md"].decode()


def test_hub_that_is_out_of_reach_leaves_the_folder_and_no_token(words, tmp_path):
    done = pushed(words(), tmp_path)

    assert done.returncode == 2 and "error: the hub did not take out as me/model" in done.stderr
    assert "hf_secret" not in done.stdout + done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "out" / "README.md").is_file()


# --- chat ---------------------------------------------------------------------------------------------


def said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, *arguments: str
) -> str:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    capsys.readouterr()
    chat([*arguments, "--max-new-tokens", "8"])
    return capsys.readouterr().out


def test_answers_are_those_of_the_folder(words, monkeypatch, capsys):
    """Of transformers' own pipeline on the exported folder, turn after turn."""
    export([*words(), "--to", "out"])
    speak: Any = pipeline("text-generation", "out", max_new_tokens=8, do_sample=False, dtype="auto")
    history: list[dict[str, str]] = []
    expected = []
    for question in ("Hello", "And then?"):
        history.append({"role": "user", "content": question})
        history = speak(history)[0]["generated_text"]
        expected.append(history[-1]["content"])

    spoken = said(monkeypatch, capsys, "Hello\n\nAnd then?\n", *words())

    assert spoken == "".join(f"{text}\n" for text in expected)


def test_new_conversations_forget(words, monkeypatch, capsys):
    once = said(monkeypatch, capsys, "Hello\n", *words())

    assert said(monkeypatch, capsys, "Hello\n/new\nHello\n", *words()) == 2 * once


def test_base_answers_beside_the_cell(words, monkeypatch, capsys):
    alone, base = (said(monkeypatch, capsys, "Hello\n", *words(*w)) for w in ([], ["paradigm=base"]))

    both = said(monkeypatch, capsys, "Hello\n", *words(), "--compare", "base")

    assert both == f"[cell] {alone}[base] {base}"


def test_adapter_cell_speaks(words, monkeypatch, capsys):
    assert said(monkeypatch, capsys, "Hello\n", *words(*ADAPTER)).endswith("\n")


def test_drawn_answers_are_those_of_the_seed(words, monkeypatch, capsys):
    hot = [*words(), "--temperature", "5"]
    answers = [said(monkeypatch, capsys, "Hello\n", *hot) for _ in range(2)]

    assert answers[0] == answers[1] != said(monkeypatch, capsys, "Hello\n", *words())


@pytest.mark.parametrize("flags", [["--temperature", "0"], ["--temperature", "nan"]])
def test_temperatures_that_mean_nothing(words, capsys, flags):
    assert "--temperature must be positive" in refusal(chat, capsys, [*words(), *flags])


def test_cell_that_is_not_there_is_not_talked_to(words, capsys):
    assert "`python train.py" in refusal(chat, capsys, words("lambda=0.5"))


@pytest.mark.parametrize("package", ["paft.export", "paft.chat"])
def test_help(package):
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-m", package, "--help"], env=env, capture_output=True, text=True)

    assert done.returncode == 0 and f"python -m {package} merge=ties lambda=1e-4" in done.stdout
