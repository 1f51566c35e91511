"""The command line end to end on a tiny model: a grid, every paradigm, every merge."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from paft.command.pipeline import run_cell
from paft.command.words import flag_first
from paft.graph.build import build
from paft.store.store import Store

pytestmark = pytest.mark.slow

SMOKE = ("experiment=smoke", "lambda=1e-4", "trainer.progress_bar=false", "callbacks=none")


def count(store: Path) -> dict[str, int]:
    return {p.name: len(list(p.glob("*/stage.json"))) for p in store.iterdir()}


@pytest.fixture(scope="module")
def logs(smoke_grid, tmp_path_factory) -> Path:
    """A copy of the grid's store to add to."""
    folder = tmp_path_factory.mktemp("sweep") / "logs"
    shutil.copytree(smoke_grid.store, folder / "stages")
    return folder


def run(compose, logs: Path, *words: str) -> tuple[dict, set[str]]:
    """results.json of a cell, and the names of the stages that had to run."""
    config = compose(*SMOKE, f"logs={logs}", *words)
    cell = build(config)
    missing = {s.name for s in Store(config.store).missing(cell)}
    folder = run_cell(config, cell)
    return json.loads((folder / "results.json").read_text()), missing


# --- the grid -----------------------------------------------------------------------------------------


def test_grid_trains_each_branch_once(smoke_grid):
    assert smoke_grid.done.returncode == 0, smoke_grid.done.stderr
    assert count(smoke_grid.store) == {
        "data": 2,
        "sft": 2,
        "reference": 1,
        "preference": 1,
        "merge": 4,
        "evaluate": 4,
    }


def test_grid_writes_the_report_and_prints_the_table(smoke_grid):
    report = smoke_grid.logs / "report"

    table = pd.read_csv(report / "results.csv")
    assert len(table) == 4
    assert set(zip(table["lambda"], table["merge"], strict=True)) == {
        (weight, merge) for weight in (1e-4, 1e-3) for merge in ("ties", "dare")
    }
    assert (report / "index.html").stat().st_size > 1000 and list(report.glob("*.png"))
    assert "DARE TIES" in smoke_grid.done.stdout and "average" in smoke_grid.done.stdout


def test_second_run_of_the_grid_does_nothing_but_report(smoke_grid_again):
    again, touched, _ = smoke_grid_again
    print(f"smoke grid again: {again.seconds:.1f} s")

    assert again.done.returncode == 0, again.done.stderr
    assert not touched
    told = [line.split() for line in again.done.stdout.splitlines() if " hit " in line or " run " in line]
    assert {words[2] for words in told} == {"hit"} and len(told) == 4 * 7
    assert "DARE TIES" in again.done.stdout


def test_no_stage_is_left_half_done(smoke_grid):
    assert not [p for p in smoke_grid.store.glob("*/*") if ".partial" in p.name or ".damaged" in p.name]


def test_evaluate_folder_holds_results_and_branches_hold_peft_adapters(smoke_grid):
    for folder in smoke_grid.store.glob("evaluate/*/"):
        results = json.loads((folder / "results.json").read_text())
        assert results["tasks"].keys() == {"tool_call", "honesty", "mmlu_dev", "mmlu_dev_bits"}
    for folder in [*smoke_grid.store.glob("sft/*/"), *smoke_grid.store.glob("preference/*/")]:
        assert (folder / "adapter" / "adapter_model.safetensors").is_file()
        assert json.loads((folder / "adapter" / "adapter_config.json").read_text())["peft_type"] == "LORA"
        assert not (folder / "work").exists()


# --- paradigms and merges in the same store -----------------------------------------------------------

TRAINS = {
    "parallel": set(),
    "sequential": {"reference", "preference", "merge", "evaluate"},
    "sft": {"merge", "evaluate"},
    "preference": {"merge", "evaluate"},
    "base": {"evaluate"},
}


@pytest.mark.parametrize("paradigm", TRAINS)
def test_paradigm_runs_only_what_it_adds(compose, logs, paradigm):
    results, ran = run(compose, logs, f"paradigm={paradigm}")

    assert ran == TRAINS[paradigm]
    assert 0 <= results["average"] <= 1


def test_orpo_reuses_sft_and_both_data_stages(compose, logs):
    _, ran = run(compose, logs, "preference=orpo")

    assert ran == {"preference", "merge", "evaluate"}


@pytest.mark.parametrize("merge", ["slerp", "task_arithmetic", "ties", "dare", "dare_linear", "linear"])
def test_every_merge_runs(compose, logs, merge):
    results, ran = run(compose, logs, f"merge={merge}")

    assert ran == (set() if merge in ("ties", "dare") else {"merge", "evaluate"})
    assert results["tasks"]["mmlu_dev_bits"]["score"] > 0


def test_merged_model_can_be_thrown_away(compose, logs):
    words = ("merge=linear", "merge.weights=[0.3,0.7]", "merge.keep=false")
    first, ran = run(compose, logs, *words)

    cell = build(compose(*SMOKE, f"logs={logs}", *words))
    assert ran == {"merge", "evaluate"}
    assert not Store(logs / "stages").path(cell.inputs["model"]).exists()
    again, ran = run(compose, logs, *words)
    assert (again, ran) == (first, set())


# --- the words of a command ---------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["-m", "--multirun"])
def test_flag_first_keeps_the_order_of_the_rest(flag):
    assert flag_first(["b=1", flag, "a=2", "c=job"]) == [flag, "b=1", "a=2", "c=job"]


def test_flags_may_stand_between_overrides_with_their_values():
    given = ["b=1", "--config-dir", "mine", "a=2", "-m", "--cfg", "job"]
    assert flag_first(given) == ["--config-dir", "mine", "-m", "--cfg", "job", "b=1", "a=2"]
