"""Ctrl-C and SIGTERM in the middle of a training: saved, one line that says how to go on, and gone on with."""

import os
import re
import signal
from pathlib import Path

import psutil
import pytest
from processes import Run, assert_same_training, children, start

pytestmark = pytest.mark.slow

SFT = ("lambda=1e-4", "paradigm=sft", "trainer.checkpoint_every=100")
"""No checkpoint comes by itself in 8 steps: what is there was saved because of the signal."""


def training(run: Run, logs: Path) -> Path:
    """Wait until the first steps are made; the folder that is being filled."""
    run.until(lambda: "loss=" in run.said)
    (partial,) = logs.glob("stages/sft/*.partial")
    return partial


def assert_stopped(run: Run, partial: Path, signum: signal.Signals) -> int:
    """The step whose checkpoint it left."""
    assert run.wait() == 128 + signum, run.said[-3000:]
    assert run.said.count(f"stopped by {signum.name}: give the same command again to go on") == 1
    assert "Traceback" not in run.said
    (checkpoint,) = (partial / "work").glob("*.ckpt*")
    return int(checkpoint.stem.removeprefix("step="))


TWICE = pytest.param((signal.SIGINT, signal.SIGTERM), marks=pytest.mark.exhaustive)


@pytest.mark.parametrize("signums", [(signal.SIGTERM,), TWICE])
def test_stopped_and_gone_on_with(smoke_grid, tmp_path, signums):
    steps = []
    for signum in signums:
        run = start(*SFT, "sft.max_steps=8", logs=tmp_path)
        partial = training(run, tmp_path)
        run.send(signum)
        steps.append(assert_stopped(run, partial, signum))

    last = start(*SFT, logs=tmp_path).succeed()

    assert 0 < steps[0] <= steps[-1] <= 8
    shown = re.findall(r"sft: .* (\d)/8 \[", last.said)
    assert int(shown[0]) in (steps[-1], steps[-1] + 1)  # the progress bar goes on where it was
    assert_same_training(tmp_path / "stages", smoke_grid.store, "sft")


def test_on_two_devices_no_rank_is_left_over(tmp_path):
    run = start(*SFT, "trainer.devices=2", "strategy=ddp", "sft.max_steps=400", logs=tmp_path)
    partial = training(run, tmp_path)
    ranks = children(run)
    os.killpg(run.process.pid, signal.SIGINT)  # as a terminal does: to every process of the group

    step = assert_stopped(run, partial, signal.SIGINT)

    assert len(ranks) >= 3  # torchrun and two ranks
    assert not psutil.wait_procs(ranks, timeout=30)[1]
    assert 0 < step < 400
