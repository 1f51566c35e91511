"""A grid in which some cells fail: the others are reported, and every failing one is named."""

import subprocess
from pathlib import Path

import pandas as pd
import pytest
from conftest import train

from paft.command.failures import Failures
from paft.graph.stage import Stage

SMALL = ("experiment=smoke", "trainer.progress_bar=false", "-m")
DIVERGES = ("sft.lr=1e-2,1e30", "merge=ties,slerp")


@pytest.fixture(scope="module", params=[(), ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")])
def grid(request, tmp_path_factory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Four cells, two of them on an SFT training whose loss becomes infinite."""
    logs = tmp_path_factory.mktemp("failing") / "logs"
    return train(*SMALL, *DIVERGES, *request.param, f"logs={logs}", cwd=logs.parent), logs


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if "sft.lr=1e+30 merge" in line]


@pytest.mark.slow
def test_finished_cells_are_reported_and_the_exit_code_is_2(grid):
    done, logs = grid

    assert done.returncode == 2, done.stderr
    table = pd.read_csv(logs / "report" / "results.csv")
    assert set(zip(table["sft_lr"], table["merge"], strict=True)) == {(1e-2, "ties"), (1e-2, "slerp")}
    assert (logs / "report" / "index.html").stat().st_size > 1000
    assert "TIES" in done.stdout and "SLERP" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_each_failing_cell_is_named_with_its_error_when_it_fails_and_at_the_end(grid):
    done, _ = grid
    said, told = done.stderr.split("error: 2 of 4 cells failed; the same command tries them again\n")

    assert "error: #2 " in said and "error: #3 " in said
    two, three = told.splitlines()
    assert two.split()[:2] == ["#2", "experiment=smoke"] and "merge=ties" in two
    assert three.split()[:2] == ["#3", "experiment=smoke"] and "merge=slerp" in three
    assert all(" at step 1, on rows [" in line for line in (two, three))


@pytest.mark.slow
def test_stage_that_failed_is_not_tried_for_another_cell(grid):
    done, logs = grid

    refused = [line for line in errors(done) if " failed in another cell of this grid: " in line]
    assert len(refused) == 2  # one cell: when it fails, and at the end
    (marker,) = logs.glob("hydra/*/failed/????????????????.txt")
    assert f"sft {marker.stem} failed in another cell" in refused[0]


@pytest.mark.slow
def test_failure_of_a_cell_inside_a_shared_training_is_not_the_trainings(tmp_path):
    """The preference training runs the cell's own merge and evaluation before it is published."""
    split, none = "evaluate.split=validation", "evaluate.validation_share=0.3,1e-9"
    done = train(*SMALL, split, none, f"logs={tmp_path}", cwd=tmp_path)

    assert done.returncode == 2, done.stderr
    assert len(pd.read_csv(tmp_path / "report" / "results.csv")) == 1
    backwards = train(*SMALL, split, none.replace("0.3,1e-9", "1e-9,0.3"),
                      "seed=1", f"logs={tmp_path}", cwd=tmp_path)  # fmt: skip
    assert len(pd.read_csv(tmp_path / "report" / "results.csv")) == 2, backwards.stderr
    assert "evaluate.validation_share=1e-09 leaves paft_mmlu_dev" in backwards.stderr.splitlines()[-1]


@pytest.mark.slow
def test_failure_that_is_no_mistake_leaves_its_traceback_in_a_file(tmp_path):
    (tmp_path / "bomb.py").write_text(
        "from lightning.pytorch.callbacks import Callback\n"
        "class Bomb(Callback):\n"
        "    def __init__(self, goes_off): self.goes_off = goes_off\n"
        "    def on_train_start(self, *_):\n"
        "        if self.goes_off: raise ZeroDivisionError('bomb')\n"
    )
    bomb = "+callbacks.bomb._target_=bomb.Bomb", "+callbacks.bomb.goes_off=true,false"
    done = train(*SMALL, *bomb, "paradigm=sft", f"logs={tmp_path}", cwd=tmp_path, PYTHONPATH=paths(tmp_path))

    assert done.returncode == 2, done.stderr
    assert len(pd.read_csv(tmp_path / "report" / "results.csv")) == 1
    (trace,) = tmp_path.glob("hydra/*/failed/cell-0-traceback.txt")
    assert "in on_train_start" in trace.read_text()
    assert f"ZeroDivisionError: bomb (traceback: {trace})" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_failure_that_is_no_mistake_of_the_only_cell_is_a_failure_of_the_command(tmp_path):
    (tmp_path / "bomb.py").write_text(
        "from lightning.pytorch.callbacks import Callback\n"
        "class Bomb(Callback):\n"
        "    def on_train_start(self, *_): raise ZeroDivisionError('bomb')\n"
    )
    words = ("+callbacks.bomb._target_=bomb.Bomb", "paradigm=sft", f"logs={tmp_path}")
    done = train(*SMALL, *words, cwd=tmp_path, PYTHONPATH=paths(tmp_path))

    assert done.returncode == 1 and "1 of 1 cells failed" in done.stderr


def paths(folder: Path) -> str:
    return f"{folder}:{Path(__file__).parents[1] / 'src'}"


# --- what the jobs of a grid tell each other -----------------------------------------------------------


def test_innermost_stage_that_failed_is_remembered_and_refused(tmp_path):
    failures, inner, outer = Failures(tmp_path), Stage("merge", 1, {}), Stage("preference", 1, {})
    with pytest.raises(ValueError, match=r"^bad delta$"), failures.of(outer), failures.of(inner):
        raise ValueError("bad delta")

    another = Failures(tmp_path)  # of another process
    told = f"^{inner} failed in another cell of this grid: bad delta$"
    with pytest.raises(ValueError, match=told), another.of(inner):
        raise AssertionError("it ran")
    with another.of(outer):
        pass


def test_full_disk_is_tried_again(tmp_path):
    stage = Stage("data", 1, {})
    with pytest.raises(OSError), Failures(tmp_path).of(stage):
        raise OSError(28, "No space left on device")
    with Failures(tmp_path).of(stage):
        pass


def test_grid_in_a_used_folder_knows_nothing_of_the_one_before(tmp_path):
    failures = Failures(tmp_path)
    failures.add(0, ["merge=ties"], ValueError("wrong"), mistake=True)
    assert failures.cell(0) == "wrong" and failures.cell(1) is None

    failures.clear()

    assert failures.cell(0) is None
