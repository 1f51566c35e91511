"""Callbacks that users bring: a stage is complete when its steps are done, and what may change it is in its key."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import train
from lightning.pytorch.callbacks import Callback
from resumable import configured, stage_of
from resumable import train as train_branch
from test_stage import CELL, keys

from paft.graph.callbacks import identities, refuse_unknown
from paft.process.interrupt import Interrupted
from paft.store.store import Store
from paft.training.checkpoint import checkpoints

SMALL = ("experiment=smoke", "trainer.progress_bar=false", "paradigm=sft", "lambda=1e-3")
STOP = "+callbacks.stop={_target_: test_user_callbacks.StopAt, step: 2, how: %s}"


class StopAt(Callback):
    """Ends a training after `step` steps in one of the ways a callback has."""

    def __init__(self, step: int, how: str) -> None:
        self.step, self.how = step, how

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step < self.step:
            return
        match self.how:
            case "should_stop":
                trainer.should_stop = True
            case "max_steps":
                trainer.fit_loop.epoch_loop.max_steps = self.step
            case "interrupt":
                raise KeyboardInterrupt
            case "exit":
                raise SystemExit(0)


@pytest.mark.parametrize("how", ["should_stop", "max_steps", "exit"])
def test_training_that_a_callback_ends_early_is_no_result(tmp_path, how):
    with pytest.raises(ValueError, match=r"stopped at step 2 of 8 by a callback \(callbacks.stop\)"):
        train_branch(configured(tmp_path, STOP % how), "sft", tmp_path / "sft")

    assert not (tmp_path / "sft" / "adapter").exists()
    # the next run goes on from there; an exception comes before the step is saved
    assert set(checkpoints(tmp_path / "sft")) == ({2} if how != "exit" else set())


def test_callback_that_interrupts_stops_the_run_as_ctrl_c_does(tmp_path):
    with pytest.raises(Interrupted) as stopped:
        train_branch(configured(tmp_path, STOP % "interrupt"), "sft", tmp_path / "sft")

    assert stopped.value.exit_code == 130


@pytest.mark.slow
def test_stopped_training_is_published_under_no_key(tmp_path):
    """Not the one of the whole training, and neither are a merge and scores made of it at the end of the fit."""
    path = {"PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[1] / 'src'}"}
    words = (*SMALL, f"logs={tmp_path}")
    done = train(*words, STOP % "should_stop", cwd=tmp_path, **path)

    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "error: the sft training was stopped at step 2 of 8 by a callback (callbacks.stop)" in done.stderr
    assert not list(tmp_path.glob("stages/sft/*/stage.json"))
    parallel = (*words, "paradigm=parallel", STOP.replace("callbacks.stop", "callbacks.late") % "should_stop")
    done = train(*parallel, "callbacks.late.step=8", "preference.max_steps=9", cwd=tmp_path, **path)
    assert "the preference training was stopped at step 8 of 9" in done.stderr
    assert not list(tmp_path.glob("stages/evaluate/*/stage.json"))
    whole = train(*words, cwd=tmp_path, **path)
    assert whole.returncode == 0 and " hit " not in "".join(
        line for line in whole.stdout.splitlines() if line.startswith("sft ")
    )


@pytest.mark.slow
def test_ranks_of_a_stopped_training_leave_one_message(tmp_path):
    path = {"PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[1] / 'src'}"}
    two = ("trainer.devices=2", "strategy=ddp", f"logs={tmp_path}")
    done = train(*SMALL, *two, STOP % "should_stop", cwd=tmp_path, **path)

    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "error: the sft training was stopped at step 2 of 8 by a callback (callbacks.stop)" in done.stderr
    assert not list(tmp_path.glob("stages/sft/*/stage.json"))


# --- keys ---------------------------------------------------------------------------------------------


@pytest.fixture
def mine(tmp_path, monkeypatch) -> Path:
    (tmp_path / "my_callbacks.py").write_text("class Mine: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "my_callbacks.py"


def with_callbacks(*specs: Any) -> dict[str, str]:
    return keys(replace(CELL, callbacks={f"c{i}": spec for i, spec in enumerate(specs)}))


MINE = {"_target_": "my_callbacks.Mine", "every": 3}
WATCHING = [
    {"_target_": "paft.callbacks.sparsity.DeltaSparsity", "every_n_train_steps": 7},
    {"_target_": "paft.callbacks.merge_then_evaluate.MergeThenEvaluate", "every_n_train_steps": 7},
    {"_target_": "lightning.pytorch.callbacks.LearningRateMonitor"},
    {"_target_": "lightning.pytorch.callbacks.lr_monitor.LearningRateMonitor"},
    {"_target_": "lightning.pytorch.callbacks.DeviceStatsMonitor"},
    None,
]


@pytest.mark.parametrize("spec", WATCHING)
def test_what_only_watches_is_in_no_key(spec):
    assert with_callbacks(spec) == keys(CELL)


def test_class_arguments_and_source_of_a_callback_are_in_the_keys_of_both_trainings(mine):
    plain, first = keys(CELL), with_callbacks(MINE)
    assert {name for name in plain if plain[name] != first[name]} == {
        "sft",
        "preference",
        "merge",
        "evaluate",
    }
    assert with_callbacks(*WATCHING, MINE) == first

    other_arguments = with_callbacks({**MINE, "every": 4})
    other_class = with_callbacks({**MINE, "_target_": "my_callbacks.Other"})
    mine.write_text("class Mine: 'edited'\n")
    edited = with_callbacks(MINE)

    assert len({k["sft"] for k in (plain, first, other_arguments, other_class, edited)}) == 5


def test_module_beside_the_callback_in_its_package_is_part_of_its_source(tmp_path, monkeypatch):
    package = tmp_path / "my_package"
    package.mkdir()
    for name in ("__init__", "callback", "helper"):
        (package / f"{name}.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    before = with_callbacks({"_target_": "my_package.callback.Mine"})
    (package / "helper.py").write_text("changed = True\n")

    assert with_callbacks({"_target_": "my_package.callback.Mine"})["sft"] != before["sft"]


@pytest.mark.parametrize("name", ["EarlyStopping", "StochasticWeightAveraging", "Timer"])
def test_lightnings_callbacks_that_act_are_in_the_key(name):
    assert with_callbacks({"_target_": f"lightning.pytorch.callbacks.{name}"})["sft"] != keys(CELL)["sft"]


def test_callback_inside_a_watcher_is_found(mine):
    assert identities({"a": {**WATCHING[2], "inner": [{"_target_": "my_callbacks.Mine"}]}})


# --- refused before anything runs ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"_target_": "nowhere.Mine"}, "callbacks.c names nowhere.Mine, and there is no module 'nowhere'"),
        ({"_target_": "__main__.Mine"}, "there is no module '__main__'"),
        ({"every": 3}, "callbacks.c must be a class and its arguments"),
        ("my_callbacks.Mine", "callbacks.c must be a class and its arguments"),
    ],
)
def test_callback_that_cannot_be_found_is_refused(spec, told):
    with pytest.raises(ValueError, match=told):
        refuse_unknown({"c": spec})


def test_class_that_is_no_callback_is_refused(tmp_path):
    config = configured(tmp_path, "+callbacks.c={_target_: pathlib.Path}")

    with pytest.raises(
        ValueError, match=r"callbacks\.c is no lightning\.pytorch\.callbacks\.Callback, got PosixPath"
    ):
        train_branch(config, "sft", tmp_path / "sft")


def test_callback_that_lightning_refuses_is_named(tmp_path):
    config = configured(tmp_path, "+callbacks.kept={_target_: lightning.pytorch.callbacks.ModelCheckpoint}")

    with pytest.raises(ValueError, match=r"refuses one of the callbacks \(kept\).*ModelCheckpoint"):
        train_branch(config, "sft", tmp_path / "sft")


def test_null_leaves_a_callback_out(tmp_path):
    config = configured(tmp_path, "callbacks=default", "callbacks.sparsity=null")
    stage, _ = stage_of(config, "sft")
    metrics = train_branch(config, "sft", tmp_path / "sft")

    assert metrics["steps"] == 8 and "train/sparsity" not in metrics
    assert stage.config.callbacks is None and not Store(config.store).complete(stage)
