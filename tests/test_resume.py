"""A branch killed with SIGKILL and run again is bitwise the branch that was never killed, dropout included."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from resumable import configured, stage_of, train
from safetensors.torch import load_file

from paft.model import base_folder
from paft.training.trainer import last_checkpoint, resumed_step

HERE = Path(__file__).parent
TIMES = ["seconds", "train/tokens_per_second", "train/share_of_peak", "train/peak_memory_gb"]


@pytest.fixture(scope="module", params=["sft", "preference"])
def killed(request, tmp_path_factory) -> tuple[str, Path]:
    """(branch, folder) of a run that died after 5 of 8 steps; its last checkpoint is of step 4."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, str(HERE / "resumable.py"), str(folder), request.param, "5"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(HERE)}, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return request.param, folder


@pytest.fixture(scope="module")
def runs(killed, tmp_path_factory) -> dict[str, tuple[Path, dict[str, Any]]]:
    branch, folder = killed
    again = folder / "again"
    shutil.copytree(folder / branch, again)
    straight = tmp_path_factory.mktemp("straight") / branch
    config = configured(folder)
    return {
        "resumed": (again, train(config, branch, again)),
        "straight": (straight, train(config, branch, straight)),
    }


def checkpoint_of(killed: tuple[str, Path]) -> Path:
    branch, folder = killed
    path = last_checkpoint(folder / branch)
    assert path is not None and resumed_step(folder / branch) == 4
    return Path(path)


def test_killed_run_left_a_checkpoint_and_nothing_finished(killed):
    branch, folder = killed
    assert checkpoint_of(killed).name == "step=4.ckpt"
    assert not (folder / branch / "adapter").exists() and not (folder / branch / "history.csv").exists()


def test_checkpoint_holds_the_adapter_and_no_base_weight(killed):
    checkpoint = torch.load(checkpoint_of(killed), weights_only=True)  # refuses pickled classes
    names = list(checkpoint["state_dict"])
    assert names and all("lora_A" in name or "lora_B" in name for name in names)
    factors = sum(t.numel() for t in checkpoint["state_dict"].values())
    moments = checkpoint["optimizer_states"][0]["state"].values()
    assert sum(m["exp_avg"].numel() for m in moments) == factors


def test_checkpoint_is_the_size_of_adapter_and_optimizer(killed):
    state = torch.load(checkpoint_of(killed), weights_only=True)["state_dict"]
    factors = 4 * sum(t.numel() for t in state.values())
    model = configured(killed[1]).model
    base = (base_folder(model) / "model.safetensors").stat().st_size
    size = checkpoint_of(killed).stat().st_size
    assert 3 * factors < size < 3 * factors + 200_000 < 3 * factors + base


def test_resumed_adapter_is_bitwise_that_of_an_uninterrupted_run(runs):
    resumed, straight = (load_file(out / "adapter" / "adapter_model.safetensors") for out, _ in runs.values())
    assert resumed.keys() == straight.keys()
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)
    assert any(t.abs().max() > 0 for name, t in straight.items() if "lora_B" in name)


def test_resumed_history_is_that_of_an_uninterrupted_run(runs):
    resumed, straight = (pd.read_csv(out / "history.csv").drop(columns=TIMES) for out, _ in runs.values())
    pd.testing.assert_frame_equal(resumed, straight, check_exact=True)
    steps = resumed.loc[resumed["train/loss"].notna(), "step"]
    assert steps.tolist() == list(range(8))


def test_resumed_metrics_are_those_of_an_uninterrupted_run(runs):
    resumed, straight = (metrics for _, metrics in runs.values())
    flops = [metrics.pop("throughput")["flops"] for metrics in (resumed, straight)]
    assert resumed == straight and flops[0] == flops[1] > 0
    assert straight["steps"] == 8 and straight["tokens"] > 0


def test_finished_branch_keeps_no_checkpoint_and_no_pickle(runs):
    for out, _ in runs.values():
        files = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
        assert files == {
            "adapter/adapter_config.json",
            "adapter/adapter_model.safetensors",
            "adapter/paft.json",
            "history.csv",
            "sparsity.json",
        }


def test_dropout_was_on(killed, runs):
    branch, folder = killed
    stage, _ = stage_of(configured(folder), branch)
    assert stage.config.branch.lora.dropout == 0.1
    plain = train(configured(folder, f"{branch}.lora.dropout=0"), branch, folder / "plain")
    assert plain["train/loss"] != runs["straight"][1]["train/loss"]
