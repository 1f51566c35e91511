"""A Hydra multirun whose trainings use two processes each."""

from collections import Counter
from pathlib import Path

import pytest
from grid import TINY, assert_each_stage_once, train

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
