"""A Hydra multirun whose trainings use two processes each."""

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from grid import HERE, TINY, assert_each_stage_once, command_of, train

pytestmark = pytest.mark.slow
TWO = ("trainer.devices=2", "strategy=fsdp", "logger=wandb")
FAULT = ("-m", "lambda=5e-4", "paradigm=sft", "+callbacks.boom={_target_: boom.Boom}")


@pytest.fixture(
    scope="module",
    params=[(1e-4,), pytest.param((1e-4, 1e-3), marks=pytest.mark.exhaustive)],
    ids=["1x2", "2x2"],
)
def grid(request, tmp_path_factory) -> tuple[Path, int]:
    """(logs, number of lambdas) of a grid with two merges."""
    folder = tmp_path_factory.mktemp("multirun") / "logs"
    done = train(folder, *TINY, *TWO, "-m", f"lambda={','.join(map(str, request.param))}", "merge=ties,dare")
    assert done.returncode == 0, done.stderr
    return folder, len(request.param)


def test_grid_makes_each_stage_once_in_two_processes(grid):
    logs, lambdas = grid
    assert_each_stage_once(logs, lambdas=lambdas)


def test_every_cell_and_every_branch_has_one_wandb_run(grid):
    logs, lambdas = grid
    ids = [p.name.split("-", 3)[3] for p in (logs / "wandb").glob("offline-run-*")]
    assert len(ids) == len(set(ids))
    assert Counter(name.split("-")[0] for name in ids) == {
        "sft": lambdas,
        "preference": 1,
        "cell": 2 * lambdas,
    }


def test_failing_rank_ends_the_run_with_its_traceback_and_an_exit_code(grid):
    failed = train(grid[0], *TINY, *TWO, *FAULT)

    assert failed.returncode == 1
    assert 'raise RuntimeError("boom in rank 1")' in failed.stderr
    assert "on 2 devices failed: exit 1" in failed.stderr


# --- signals to the run itself ------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_ranks_save_when_the_run_is_stopped_and_die_when_it_is_killed(grid, tmp_path):
    hold = f"+callbacks.hold={{_target_: hold.Hold, folder: '{tmp_path}', steps: [1,3]}}"
    command = command_of(grid[0], *TINY, *TWO, "-m", "lambda=2e-4", "paradigm=sft", hold)

    stopped, ranks = held(command, tmp_path / "step-1")
    stopped.terminate()
    assert stopped.wait(timeout=60) == 128 + signal.SIGTERM
    assert [p.name for p in grid[0].glob("stages/sft/*.partial/work/*.ckpt")] == ["step=2.ckpt"]
    killed, ranks = held(command, tmp_path / "step-3")
    killed.kill()
    killed.wait(timeout=60)
    wait("the end of the ranks", lambda: not any(rank.is_running() for rank in ranks))


def held(command: list[str], step: Path) -> tuple[subprocess.Popen[bytes], list[psutil.Process]]:
    """The run, and its torchrun and ranks, in that step."""
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(HERE)}, stdout=subprocess.DEVNULL)
    wait(step.name, step.exists)
    children = psutil.Process(process.pid).children(recursive=True)
    ranks = [c for c in children if "paft.training" in " ".join(c.cmdline())]
    assert len(ranks) == 3
    return process, ranks


def wait(what: str, ready: Callable[[], bool], *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come in {seconds} s")
        time.sleep(0.1)
