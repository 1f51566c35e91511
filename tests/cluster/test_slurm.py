"""A grid, requeued jobs and a stage on two nodes, under a real SLURM."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest
import torch
from grid import GRID, TINY, assert_each_stage_once, record, sft_adapter, train
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
    logs = tmp_path_factory.mktemp("grid") / "logs"
    done = train(logs, *GRID, *ON_SLURM, **slurm.env)
    assert done.returncode == 0, done.stderr
    return logs


def test_array_makes_each_stage_once(grid):
    assert_each_stage_once(grid)
    (script,) = grid.glob("hydra/*/slurm/*/*_submission.sh")
    assert "#SBATCH --array=0-3%4" in script.read_text()


def test_branches_are_trained_at_the_same_time_by_different_jobs(grid):
    runs = [r["run"] for branch in ("sft", "preference") for r in record(grid, branch)]
    assert len({run["job"] for run in runs}) == 3
    spans = [(finished(run) - run["seconds"], finished(run)) for run in runs]
    assert max(begin for begin, _ in spans) < min(end for _, end in spans)


def finished(run: dict) -> float:
    return datetime.fromisoformat(run["finished"]).timestamp()


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


def test_a_signalled_job_saves_goes_back_to_the_queue_and_ends_with_the_same_bits(slurm, grid, tmp_path):
    commands = {1: ["scancel", "--signal=USR1"], 2: ["scancel", "--signal=TERM"], 3: ["scontrol", "requeue"]}
    saved = disturb(slurm, tmp_path, grid, commands)

    assert saved == [["step=2.ckpt"], ["step=3.ckpt"], ["step=4.ckpt"]]
    again, straight = (sft_adapter(logs, 1e-3) for logs in (tmp_path / "logs", grid))
    assert again.keys() == straight.keys()
    assert all(torch.equal(again[name], straight[name]) for name in straight)
    assert any(t.abs().max() > 0 for name, t in straight.items() if "lora_B" in name)


def test_a_stage_on_two_nodes_is_signalled_too_and_gives_the_adapter_of_one(slurm, grid, tmp_path):
    words = ("trainer.num_nodes=2", "strategy=fsdp", "sft.lora.dropout=0")
    saved = disturb(slurm, tmp_path, grid, {1: ["scancel", "--signal=USR2"]}, *words)

    assert saved == [["step=2.ckpt"]]
    assert {p.name for p in tmp_path.glob("rank-*")} == {"rank-0-on-paft1", "rank-1-on-paft2"}
