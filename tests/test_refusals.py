"""What a user meets is said in words, before anything runs, and what needs nothing new goes on."""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT, train
from test_stage import CELL

from paft.command.libraries import quiet_libraries
from paft.config import LocalModel, TaskConfig, TinyModel, Wandb, WheelModel
from paft.evaluate.columns import columns_of, task_manager
from paft.graph.build import build
from paft.model.base import base_folder, load_tokenizer
from paft.report.__main__ import main as report
from paft.report.stages import stage_rows
from paft.report.table import rows
from paft.tracking.run import mode, unset_empty

SMALL = ("experiment=smoke", "trainer.progress_bar=false")


# --- bases --------------------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path) -> Path:
    return shutil.copytree(base_folder(TinyModel(name="tiny")), tmp_path / "my-base")


def edited(base: Path, **changes: object) -> LocalModel:
    path = base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return LocalModel(path=str(base))


@pytest.mark.parametrize("kind", ["nonesuch", "t5", "bert_but_newer", None, ""])
def test_base_that_transformers_has_no_causal_model_of_is_named(base, kind):
    with pytest.raises(ValueError, match=rf"config\.json has model_type={kind!r}, of which transformers"):
        base_folder(edited(base, model_type=kind))


def test_base_with_code_of_its_own_says_what_runs_it(base):
    own = {"model_type": "nonesuch", "auto_map": {"AutoModelForCausalLM": "modeling.Model"}}
    with pytest.raises(ValueError, match=r"model\.trust_remote_code=true runs it"):
        base_folder(edited(base, **own))

    trusted = replace(edited(base, **own), trust_remote_code=True)
    assert base_folder(trusted) == base


def test_base_without_a_tokenizer_is_named(base):
    for path in base.glob("tokenizer*"):
        path.unlink()

    with pytest.raises(ValueError, match=f"the tokenizer of {base} cannot be loaded"):
        load_tokenizer(base, CELL.data.template)


@pytest.mark.parametrize("path", ["folders/my-base", "folders/my-base/", "./folders/x/../my-base"])
def test_local_base_is_called_as_its_folder(path):
    assert LocalModel(path=path).name == "my-base"
    assert LocalModel(name="mine", path=path).name == "mine"


def test_local_base_needs_no_name_on_the_command_line(compose, base):
    assert compose("model=local", f"model.path={base}").model.name == "my-base"


# --- names --------------------------------------------------------------------------------------------


def test_embedded_base_is_called_what_it_is_and_keeps_its_key(compose):
    model = compose("model=smollm2_135m").model

    assert (model.name, model.title) == ("SmolLM2-135M", "SmolLM2-135M-Instruct (Q4_1 de-quantised)")
    assert build(compose("paradigm=base")).identity["config"]["model"]["name"] == "SmolLM2-135M"


def test_base_of_another_file_keeps_its_name():
    odd = WheelModel(name="odd", package="p", version="1", file="weights.gguf")
    assert odd.title == "odd" and TinyModel(name="tiny").title == "tiny"


def test_rows_of_a_store_name_the_file(smoke_grid, tmp_path):
    folder = next(smoke_grid.store.glob("evaluate/*/stage.json")).parent
    copied = shutil.copytree(folder, tmp_path / "evaluate" / folder.name)
    record = json.loads((copied / "stage.json").read_text())
    record["identity"]["config"]["model"] |= {"name": "short", "file": "Long-Name.Q8_0.gguf"}
    (copied / "stage.json").write_text(json.dumps(record))

    (row,) = rows(tmp_path)
    assert row["base"] == "Long-Name (Q8_0 de-quantised)"


@pytest.mark.parametrize("stage", ["evaluate", "sft"])
def test_copied_stage_folder_is_no_second_row(smoke_grid, tmp_path, caplog, stage):
    store = shutil.copytree(smoke_grid.store, tmp_path / "stages")
    before = len(rows(store)), len(stage_rows(store))
    caplog.clear()
    folder = next(store.glob(f"{stage}/*/stage.json")).parent
    shutil.copytree(folder, folder.with_name("copy-of-mine"))

    assert (len(rows(store)), len(stage_rows(store))) == before
    (told,) = [r.getMessage() for r in caplog.records]
    assert f"{stage}/copy-of-mine is left out of the report" in told and "under another name" in told


# --- tasks --------------------------------------------------------------------------------------------

GROUP = "group: paft_both\ntask: [paft_honesty, paft_mmlu_dev]\naggregate_metric_list: [{metric: acc}]\n"


@pytest.fixture
def manager(tmp_path, monkeypatch):
    """Knows PAFT's own tasks, a group and a tag of them."""
    from paft.evaluate import columns as run

    tasks = shutil.copytree(run.TASKS, tmp_path / "tasks")
    (tasks / "both.yaml").write_text(GROUP)
    tagged = (tasks / "paft_honesty.yaml").read_text().replace("paft_honesty", "paft_tagged")
    (tasks / "tagged.yaml").write_text(f"{tagged}\ntag: paft_tag\n")
    monkeypatch.setattr(run, "TASKS", tasks)
    return task_manager({"paft_both"})


@pytest.mark.parametrize(
    ("task", "told"),
    [
        (
            TaskConfig("paft_both", "acc,none"),
            r"is a group of tasks; evaluate\.tasks\.c\.mean_over=paft_both_ ",
        ),
        (TaskConfig("paft_tag", "acc,none"), "is a tag of several tasks"),
        (TaskConfig("paft_honestly", "acc,none"), "is no task of lm-eval or PAFT; near it: paft_honesty"),
        (TaskConfig("paft_honesty", "acc,none", mean_over="paft_"), "mean_over=paft_ has no meaning"),
        (TaskConfig("paft_both", "acc,none", mean_over="paft_", num_items=3), "num_items=3 has no meaning"),
    ],
)
def test_task_that_is_not_one_score_is_refused(manager, task, told):
    with pytest.raises(ValueError, match=rf"^evaluate\.tasks\.c\..*{told}"):
        columns_of(replace(CELL.evaluate, tasks={"c": task}), manager)


def test_group_with_mean_over_and_single_tasks_pass(manager):
    tasks = {
        "a": TaskConfig("paft_both", "acc,none", mean_over="paft_"),
        "b": TaskConfig("paft_honesty", "acc,none"),
    }
    columns_of(replace(CELL.evaluate, tasks=tasks), manager)


@pytest.mark.slow
def test_unknown_task_is_refused_before_any_stage(tmp_path):
    done = train(*SMALL, "evaluate.tasks.honesty.task=paft_honestly", f"logs={tmp_path}", cwd=tmp_path)

    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "error: evaluate.tasks.honesty.task=paft_honestly is no task" in done.stderr
    assert not list(tmp_path.glob("stages/*/*/stage.json"))


# --- the environment ----------------------------------------------------------------------------------


def test_empty_variable_of_wandb_is_an_unset_one(monkeypatch):
    for name, value in {"WANDB_MODE": "", "WANDB_PROJECT": " ", "WANDB_API_KEY": "0" * 40}.items():
        monkeypatch.setenv(name, value)

    assert mode(Wandb()) == "online"
    unset_empty()
    assert {n for n in os.environ if n.startswith("WANDB_")} >= {"WANDB_API_KEY"}
    assert not {"WANDB_MODE", "WANDB_PROJECT"} & os.environ.keys()


@pytest.mark.slow
def test_wandb_opens_a_run_under_an_empty_mode(tmp_path):
    done = train(*SMALL, "logger=wandb", "paradigm=base", f"logs={tmp_path}", cwd=tmp_path, WANDB_MODE="")

    assert done.returncode == 0 and "failed" not in done.stdout, done.stdout
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1


IMPORTS = (
    "import logging, sys\nlogging.basicConfig(format='%(name)s said %(message)s')\n"
    "from paft.command.libraries import quiet_libraries\n"
    "from paft.graph.build import build\nfrom test_stage import CELL\n"
    "quiet_libraries(list(build(CELL).walk()))\nimport peft, lm_eval.models.huggingface, bitsandbytes\n"
    "logging.getLogger('bitsandbytes.backends').warning('of four bits')\nlogging.getLogger('peft').warning('of peft')\n"
)


@pytest.mark.slow
def test_library_of_four_bits_says_nothing_where_no_such_base_is_asked_for():
    pytest.importorskip("bitsandbytes")
    path = {"PYTHONPATH": f"{ROOT / 'tests'}:{ROOT / 'src'}"}
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS], env=os.environ | path, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
    assert "bitsandbytes" not in done.stderr and "kernels" not in done.stderr
    assert "peft said of peft" in done.stderr  # real warnings stay


def test_library_of_four_bits_may_speak_where_one_is_trained(compose):
    name = logging.getLogger("bitsandbytes")
    quiet_libraries(build(compose("model.quantization=nf4")).walk())
    assert name.level == logging.NOTSET
    quiet_libraries(build(compose()).walk())
    assert name.level == logging.CRITICAL


# --- stores -------------------------------------------------------------------------------------------


@pytest.fixture
def read_only(smoke_grid, tmp_path) -> Iterator[Path]:
    """The grid's store on a disk that may not be written."""
    source, place = tmp_path / "source", tmp_path / "mounted"
    shutil.copytree(smoke_grid.store, source / "stages")
    place.mkdir()
    mounts = (["mount", "--bind", source, place], ["mount", "-o", "remount,ro,bind", place])
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mounts[0], capture_output=True).returncode:
        pytest.skip("needs root and the right to mount")
    try:
        if subprocess.run(mounts[1], capture_output=True).returncode:
            pytest.skip("needs the right to remount")
        yield place / "stages"
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["true", "false"])
def test_store_that_is_read_only_and_finished_prints_its_table(read_only, tmp_path, keep):
    done = train(
        *SMALL,
        "lambda=1e-4",
        f"merge.keep={keep}",
        f"store={read_only}",
        f"logs={tmp_path / 'logs'}",
        cwd=tmp_path,
    )

    assert done.returncode == 0, done.stderr
    assert "TIES" in done.stdout and " run " not in done.stdout
    assert ("stays: the store may not be written" in done.stdout) == (keep == "false")


@pytest.mark.slow
def test_store_that_is_read_only_and_lacks_a_stage_says_so(read_only, tmp_path):
    done = train(*SMALL, "lambda=5e-4", f"store={read_only}", f"logs={tmp_path / 'logs'}", cwd=tmp_path)

    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert (
        f"is not in the store {read_only}, and that may not be written (Read-only file system: "
        in done.stderr
    )
    assert "error: sft " in done.stderr


@pytest.mark.parametrize("words", [["ask", "q.csv"], ["compare", "a", "b"], ["wandb"], []])
def test_report_of_nothing_says_so(tmp_path, capsys, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    Path("q.csv").write_text("topic,question,both,left,right,columns\nt,q,,merge=ties,merge=dare,average\n")

    with pytest.raises(SystemExit) as stopped:
        report(["--store", "none", *words])

    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: none holds no finished evaluation")


def test_report_that_cannot_be_written_says_so(smoke_grid, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stopped:
        report(["--store", str(smoke_grid.store), "--out", str(tmp_path / "file" / "report")])

    assert stopped.value.code == 2 and str(tmp_path / "file" / "report") in capsys.readouterr().err
