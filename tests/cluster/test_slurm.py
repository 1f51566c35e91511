"""A grid, requeued jobs and a stage on two nodes, under a real SLURM."""

import shlex
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from grid import (
    GRID,
    HERE,
    TINY,
    assert_branches_overlap,
    assert_each_stage_once,
    command_of,
    meeting,
    record,
    sft_adapter,
    train,
)
from slurm import Slurm, started, unavailable

WHY_NOT = unavailable()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))]
ON_SLURM = ("hydra/launcher=slurm", "hydra.launcher.exclusive=null")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with started(tmp_path_factory.mktemp("slurm")) as running:
        yield running


# --- a grid -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grid(slurm, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("grid")
    logs = folder / "logs"
    done = train(logs, *GRID, *ON_SLURM, meeting(folder / "met", 3), **slurm.env)
    assert done.returncode == 0, done.stderr
    return logs


def test_array_makes_each_stage_once(grid):
    assert_each_stage_once(grid)
    (script,) = grid.glob("hydra/*/slurm/*/*_submission.sh")
    assert "#SBATCH --array=0-3%4" in script.read_text()


def test_branches_are_trained_at_the_same_time_by_different_jobs(grid):
    jobs = [r["run"]["job"] for branch in ("sft", "preference") for r in record(grid, branch)]
    assert len(set(jobs)) == 3
    assert_branches_overlap(grid)


# --- signals ------------------------------------------------------------------------------------------

HOLD = "+callbacks.hold={{_target_: hold.Hold, folder: '{folder}', steps: [{steps}]}}"
ONE = (*TINY, "-m", "lambda=1e-3", "paradigm=sft", *ON_SLURM)


def stopped(slurm: Slurm, folder: Path, step: int, *command: str) -> list[str]:
    """Give the job a SLURM command in that step; the checkpoints there are when it is back in the queue."""
    slurm.wait(f"step {step}", (folder / f"step-{step}").exists)
    (number,) = slurm.run("squeue", "-h", "-o", "%i").split()
    before = int(slurm.job(number)["Restarts"])
    slurm.run(*command, number)
    slurm.wait("the requeued job", lambda: int(slurm.job(number)["Restarts"]) > before)
    slurm.wait("its place in the queue", lambda: slurm.job(number)["JobState"] in ("PENDING", "RUNNING"))
    (work,) = (folder / "logs" / "stages" / "sft").glob("*.partial/work")
    saved = sorted(p.name for p in work.glob("*.ckpt"))
    slurm.run("scontrol", "update", f"JobId={number}", "StartTime=now")  # SLURM lets a requeued job wait
    return saved


def disturb(
    slurm: Slurm, folder: Path, grid: Path, commands: dict[int, list[str]], *words: str
) -> list[list[str]]:
    """One SFT cell into `folder`, given a SLURM command in each of these steps; the checkpoints after each."""
    shutil.copytree(grid / "stages" / "data", folder / "logs" / "stages" / "data")
    hold = HOLD.format(folder=folder, steps=",".join(map(str, commands)))
    with ThreadPoolExecutor() as pool:
        launcher = pool.submit(train, folder / "logs", *ONE, hold, *words, **slurm.env)
        saved = [stopped(slurm, folder, step, *command) for step, command in commands.items()]
        done = launcher.result()
    assert done.returncode == 0, done.stderr
    return saved


TERM = pytest.param({1: ["scancel", "--signal=TERM"]}, marks=pytest.mark.exhaustive)


@pytest.mark.parametrize(
    "commands", [{1: ["scancel", "--signal=USR1"], 2: ["scontrol", "requeue"]}, TERM], ids=["USR1", "TERM"]
)
def test_signalled_job_saves_goes_back_to_the_queue_and_ends_with_the_same_bits(
    slurm, grid, tmp_path, commands
):
    saved = disturb(slurm, tmp_path, grid, commands)

    assert saved == [[f"step={step + 1}.ckpt"] for step in commands]
    again, straight = (sft_adapter(logs, 1e-3) for logs in (tmp_path / "logs", grid))
    assert again.keys() == straight.keys()
    assert all(torch.equal(again[name], straight[name]) for name in straight)
    assert any(t.abs().max() > 0 for name, t in straight.items() if "lora_B" in name)


@pytest.mark.exhaustive
def test_cancelled_job_of_a_plain_batch_script_saves_and_does_not_come_back(slurm, grid, tmp_path):
    shutil.copytree(grid / "stages" / "data", tmp_path / "logs" / "stages" / "data")
    command = [
        *command_of(tmp_path / "logs", *TINY, "paradigm=sft"),
        HOLD.format(folder=tmp_path, steps="1,2"),
    ]
    script = ["#!/bin/sh", f"export PYTHONPATH={HERE}", f"srun {shlex.join(command)}"]
    (tmp_path / "job.sh").write_text("\n".join(script) + "\n")
    slurm.run(
        "sbatch", "--requeue", "--open-mode=append", f"--output={tmp_path}/out", str(tmp_path / "job.sh")
    )

    assert stopped(slurm, tmp_path, 1, "scancel", "--signal=USR1") == ["step=2.ckpt"]
    slurm.wait("step 2", (tmp_path / "step-2").exists)
    (number,) = slurm.run("squeue", "-h", "-o", "%i").split()
    slurm.run("scancel", number)
    slurm.wait("an empty queue", lambda: not slurm.run("squeue", "-h"))

    assert slurm.job(number)["JobState"] == "CANCELLED"
    (work,) = (tmp_path / "logs" / "stages" / "sft").glob("*.partial/work")
    assert [p.name for p in work.glob("*.ckpt")] == ["step=3.ckpt"]


# --- two nodes ----------------------------------------------------------------------------------------

SIGNALS = pytest.param(
    {1: ["scancel", "--signal=USR2"], 2: ["scontrol", "requeue"]}, marks=pytest.mark.exhaustive
)


@pytest.mark.parametrize("commands", [{}, SIGNALS], ids=["straight", "signals"])
def test_stage_on_two_nodes_gives_the_adapter_of_one(slurm, grid, tmp_path, commands):
    saved = disturb(slurm, tmp_path, grid, commands, "trainer.num_nodes=2", "strategy=fsdp")

    assert saved == [[f"step={step + 1}.ckpt"] for step in commands]
    ranks = [p.name.split("-") for p in tmp_path.glob("rank-*")]
    assert {rank for _, rank, _, _ in ranks} == {"0", "1"}
    assert {node for _, _, _, node in ranks} == {"paft1", "paft2"}
    two, one = (sft_adapter(logs, 1e-3) for logs in (tmp_path / "logs", grid))
    assert two.keys() == one.keys()
    for name, expected in one.items():
        # the ranks' sums are added in another order, which Adam's division by small moments enlarges
        torch.testing.assert_close(two[name], expected, atol=5e-5, rtol=1e-3)
