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

from paft.model.base import base_folder
from paft.store.damage import digests
from paft.training.checkpoint import last_checkpoint

HERE = Path(__file__).parent
PATHS = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
TIMES = ["seconds", "train/tokens_per_second", "train/share_of_peak", "train/peak_memory_gb"]


@pytest.fixture(scope="module", params=["sft", "preference"])
def killed(request, tmp_path_factory) -> tuple[str, Path]:
    """(branch, folder) of a run that died after 5 of 8 steps; its last checkpoint is of step 4."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, str(HERE / "resumable.py"), str(folder), request.param, "5"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": PATHS}, capture_output=True, text=True)
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
    step, path = last_checkpoint(folder / branch)
    assert path is not None and step == 4
    return path


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
    resumed, straight = (dict(metrics) for _, metrics in runs.values())
    flops = [metrics.pop("throughput")["flops"] for metrics in (resumed, straight)]
    assert resumed == straight and flops[0] == flops[1] > 0
    assert straight["steps"] == 8 and straight["tokens"] > 0


def test_finished_branch_keeps_its_work_apart_from_its_result(runs):
    for out, _ in runs.values():
        assert set(digests(out)) == {
            "adapter/adapter_config.json",
            "adapter/adapter_model.safetensors",
            "adapter/chat_template.jinja",
            "adapter/generation_config.json",
            "adapter/paft.json",
            "adapter/tokenizer.json",
            "adapter/tokenizer_config.json",
            "history.csv",
            "sparsity.json",
        }
        assert {p.name for p in (out / "work").iterdir()} == {"history.jsonl", "step=8.ckpt"}


def test_training_that_was_finished_but_not_published_is_not_repeated(runs, killed):
    branch, folder = killed
    out, metrics = runs["straight"]
    before = load_file(out / "adapter" / "adapter_model.safetensors")
    (out / "history.csv").unlink()

    again = train(configured(folder), branch, out)

    after = load_file(out / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert again["throughput"]["train_seconds"] == metrics["throughput"]["train_seconds"]
    assert {k: again[k] for k in ("train/loss", "tokens", "steps")} == {
        k: metrics[k] for k in ("train/loss", "tokens", "steps")
    }
    assert pd.read_csv(out / "history.csv")["train/loss"].notna().sum() == 8


def test_killed_kto_goes_on_with_the_rows_and_mismatched_answers_it_would_have_had(tmp_path):
    command = [sys.executable, str(HERE / "resumable.py"), str(tmp_path), "preference", "5", "preference=kto"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": PATHS}, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    config, outs = configured(tmp_path, "preference=kto"), [tmp_path / "preference", tmp_path / "straight"]

    resumed, straight = (train(config, "preference", out) for out in outs)

    factors = [load_file(out / "adapter" / "adapter_model.safetensors") for out in outs]
    assert all(torch.equal(factors[0][name], factors[1][name]) for name in factors[1])
    histories = [pd.read_csv(out / "history.csv").drop(columns=TIMES) for out in outs]
    pd.testing.assert_frame_equal(*histories, check_exact=True)
    assert resumed["train/kl"] == straight["train/kl"] and (histories[0]["train/kl"] > 0).any()


# --- checkpoints that are not what they should be -----------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, flip_a_byte])
def test_damaged_checkpoint_is_passed_over_for_the_one_before(killed, tmp_path, damage, caplog):
    good = checkpoint_of(killed)
    (tmp_path / "work").mkdir()
    for step in (2, 4, 6):
        shutil.copy(good, tmp_path / "work" / f"step={step}.ckpt")
    (tmp_path / "work" / "step=8.ckpt.tmp").write_bytes(b"half of one")
    damage(tmp_path / "work" / "step=6.ckpt")

    assert last_checkpoint(tmp_path) == (4, tmp_path / "work" / "step=4.ckpt")
    assert "step=6.ckpt is damaged" in caplog.text


def test_dropout_was_on(killed, runs):
    branch, folder = killed
    stage, _ = stage_of(configured(folder), branch)
    assert stage.config.branch.lora.dropout == 0.1
    plain = train(configured(folder, f"{branch}.lora.dropout=0"), branch, folder / "plain")
    assert plain["train/loss"] != runs["straight"][1]["train/loss"]
