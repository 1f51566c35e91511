"""What W&B gets, read back from its own offline files: one run per branch and cell, once, and never a crash."""

import json
import logging
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import FAKE_KEY, GRID, train
from synthetic_store import PAFT, fill
from wandb_file import OfflineRun, read_runs

from paft.command.pipeline import context_of
from paft.config import Csv, Wandb, WandbMode
from paft.report.wandb_cell import cell_id, log_cell
from paft.store.store import Store
from paft.tracking.branch import branch_id
from paft.tracking.run import mode, survive


@pytest.fixture(scope="module")
def runs(smoke_grid) -> dict[str, OfflineRun]:
    return {run.id: run for run in read_runs(smoke_grid.logs)}


def of(runs: dict[str, OfflineRun], job_type: str) -> dict[str, OfflineRun]:
    """Stage key -> run."""
    return {run.id.rpartition("-")[2]: run for run in runs.values() if run.job_type == job_type}


# --- the grid's runs ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_grid_gives_a_run_per_cell_and_per_branch(smoke_grid, runs):
    assert Counter(run.job_type for run in runs.values()) == {"cell": 4, "sft": 2, "preference": 1}
    keys = {p.parent.name for p in smoke_grid.store.glob("evaluate/*/stage.json")}
    assert {f"cell-{key}" for key in keys} == {r.id for r in of(runs, "cell").values()}
    assert {run.group for run in runs.values()} == {"tiny-demo"}
    assert all(run.exited for run in runs.values())


@pytest.mark.slow
def test_cell_holds_its_setting_and_lineage(smoke_grid, runs):
    lambdas = Counter()
    for key, run in of(runs, "cell").items():
        identity = json.loads((smoke_grid.store / "evaluate" / key / "stage.json").read_text())["identity"]
        sft = identity["inputs"]["model"]["inputs"]["sft"]
        assert run.config["lambda"] == sft["config"]["branch"]["l1"]["weight"]
        lineage = run.config["lineage"]
        branches = {"data_sft", "data_preference", "sft", "reference", "preference"}
        assert lineage.keys() == branches | {"merge", "evaluate"}
        for stage, stage_key in lineage.items():
            assert (smoke_grid.store / stage.partition("_")[0] / stage_key / "stage.json").is_file()
        lambdas[run.config["lambda"]] += 1
    assert lambdas == {1e-4: 2, 1e-3: 2}


@pytest.mark.slow
def test_cell_scores_against_results_json(smoke_grid, runs):
    for key, run in of(runs, "cell").items():
        results = json.loads((smoke_grid.store / "evaluate" / key / "results.json").read_text())
        expected = {f"score/{name}": task["score"] for name, task in results["tasks"].items()}
        expected["score/average"] = results["average"]

        assert {name: run.summary[name] for name in expected} == pytest.approx(expected)


@pytest.mark.slow
def test_cell_holds_a_table_and_pictures(smoke_grid, runs):
    for key, run in of(runs, "cell").items():
        (folder,) = (smoke_grid.logs / "wandb").glob(f"offline-run-*-cell-{key}")
        (table,) = folder.glob("files/media/table/results*.json")
        content = json.loads(table.read_text())
        assert content["columns"] == ["task", "score", "stderr", "metric", "num_items"]
        assert [row[0] for row in content["data"]] == ["tool_call", "honesty", "mmlu_dev", "mmlu_dev_bits"]
        images = {
            v for row in run.history for k, v in row.items() if k.endswith("/path") and "images" in str(v)
        }
        assert len(images) >= 3
        assert all((folder / "files" / image).read_bytes()[:4] == b"\x89PNG" for image in images)


@pytest.mark.slow
def test_branch_curves_are_complete(smoke_grid, runs):
    for key, run in of(runs, "sft").items():
        curve = [row for row in run.history if "train/loss" in row]
        assert [row["trainer/global_step"] for row in curve] == list(range(8))
        assert all(row["train/loss"] == pytest.approx(row["train/nll"] + row["train/l1"]) for row in curve)
        assert curve[0]["train/l1"] == 0 < curve[-1]["train/l1"]
        rates = {f"train/{name}" for name in ("tokens_per_second", "share_of_peak", "peak_memory_gb")}
        assert all(rates <= row.keys() for row in curve)
        sparsity = [row["train/sparsity"] for row in run.history if "train/sparsity" in row]
        measured = json.loads((smoke_grid.store / "sft" / key / "sparsity.json").read_text())
        assert sparsity == pytest.approx([measured["mean_over_layers"]["share_below_1e-5"]], abs=2e-5)
        assert run.config["branch"]["l1"]["weight"] in (1e-4, 1e-3)


@pytest.mark.slow
def test_branch_keeps_its_adapter_as_an_artifact(runs):
    for branch in ("sft", "preference"):
        for key, run in of(runs, branch).items():
            assert ("adapter", f"{branch}-{key}") in run.artifacts
            assert run.summary["steps"] == 8


@pytest.mark.slow
def test_merge_then_evaluate_scores_are_in_the_branch_that_ended_last(runs):
    with_scores = [r.job_type for r in runs.values() if any("merged/average" in row for row in r.history)]

    assert Counter(with_scores) == {"preference": 1, "sft": 1}


@pytest.mark.slow
def test_second_run_logs_nothing_twice(smoke_grid_again):
    _, _, logged = smoke_grid_again

    assert not logged


@pytest.mark.slow
def test_no_key_is_written_anywhere(smoke_grid, smoke_grid_again):
    for path in smoke_grid.logs.rglob("*"):
        if path.is_file():
            assert FAKE_KEY.encode() not in path.read_bytes(), path
    assert FAKE_KEY not in smoke_grid.done.stdout + smoke_grid.done.stderr


# --- failures cost nothing ----------------------------------------------------------------------------


@pytest.fixture
def cell(tmp_path):
    """A finished synthetic cell with a W&B logger."""
    config = replace(
        PAFT, logger=Wandb(), logs=str(tmp_path / "logs"), store=str(tmp_path / "logs" / "stages")
    )
    (stage,) = fill(Path(config.store), [config])
    return stage, context_of(config, Store(config.store), stage)


def test_unwritable_folder_is_a_warning(cell, caplog):
    stage, context = cell
    (Path(context.running.logs) / "wandb").write_text("a file where a folder should be")

    with caplog.at_level(logging.WARNING, "paft"):
        log_cell(stage, context)

    assert "W&B" in caplog.text and "going on without it" in caplog.text


@pytest.mark.slow
def test_unreachable_server_costs_one_warning_and_the_runs_are_kept_offline(smoke_grid, tmp_path):
    logs = tmp_path / "logs"
    shutil.copytree(smoke_grid.store, logs / "stages")
    env = {
        "WANDB_MODE": "online",
        "WANDB_BASE_URL": "http://127.0.0.1:9",  # discard: nobody listens
        "WANDB_API_KEY": FAKE_KEY,
        "WANDB_INIT_TIMEOUT": "1",
    }

    done = train(*GRID, f"logs={logs}", cwd=tmp_path, **env)

    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert said.count("going on without it") == 1 and "opening cell-" in said
    assert [run.job_type for run in read_runs(logs)] == ["cell"] * 4
    assert {json.loads(m.read_text())["mode"] for m in (logs / "wandb").glob("*.json")} == {"offline"}


def test_survive_gives_the_result_or_none(caplog):
    def fail() -> int:
        raise RuntimeError("no route to host")

    assert survive("opening", lambda: 3) == 3
    assert survive("opening", fail) is None
    assert "opening failed, going on without it: RuntimeError: no route to host" in caplog.text


def test_csv_logger_leaves_no_wandb_folder(cell, tmp_path):
    stage, context = cell

    log_cell(stage, replace(context, running=replace(context.running, logger=Csv())))

    assert not (tmp_path / "logs" / "wandb").exists()


# --- ids and mode -------------------------------------------------------------------------------------


def test_ids_are_made_of_stage_keys(cell):
    stage, _ = cell
    sft = stage.inputs["model"].inputs["sft"]

    assert cell_id(stage) == f"cell-{stage.key}"
    assert branch_id(sft) == f"sft-{sft.key}"


@pytest.mark.parametrize(
    ("asked", "env", "expected"),
    [
        (WandbMode.auto, {}, "offline"),
        (WandbMode.auto, {"WANDB_API_KEY": FAKE_KEY}, "online"),
        (WandbMode.offline, {"WANDB_API_KEY": FAKE_KEY}, "offline"),
        (WandbMode.online, {}, "online"),
        (WandbMode.online, {"WANDB_MODE": "offline"}, "offline"),
        (WandbMode.auto, {"WANDB_MODE": "disabled"}, "disabled"),
    ],
)
def test_mode(monkeypatch, tmp_path, asked, env, expected):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no netrc of whoever runs the tests
    for name, value in env.items():
        monkeypatch.setenv(name, value)

    assert mode(Wandb(mode=asked)) == expected
