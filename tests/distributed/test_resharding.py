"""A training checkpoint of some processes is continued by any other number of them."""

import shutil
from pathlib import Path

import pytest
import torch
from ranks import adapter_of, train
from test_strategies import RUNS, SAME, SHORT
from tiny import distance
from torch.multiprocessing.spawn import ProcessRaisedException

from paft.training.checkpoint import last_checkpoint

HOW: dict[str, tuple[int, tuple[str, ...]]] = {"one": (1, ())} | RUNS
STOPPED = ("one", "ddp 2", "fsdp 2", "fsdp 4", "hybrid 2x2")
LONGER = (*SHORT, "sft.max_steps=6", "sft.schedule=cosine", "lambda=1e-3")


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def straight(logs) -> Path:
    return train(logs, logs / "straight", "sft", *LONGER)


@pytest.fixture(scope="module")
def stopped(logs) -> dict[str, Path]:
    """Runs that failed after five of six steps; the checkpoint of each is of the fourth."""
    for how in STOPPED:
        world, strategy = HOW[how]
        with pytest.raises(ProcessRaisedException, match="Stopped: after step 5"):
            train(logs, logs / how, "sft", *LONGER, *strategy, world=world, probe=", stop_after: 5")
    return {how: logs / how for how in STOPPED}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("fsdp 2", "one"),
        ("one", "fsdp 4"),
        ("hybrid 2x2", "fsdp 2"),
        ("ddp 2", "hybrid 2x2"),
        ("fsdp 4", "ddp 2"),
    ],
)
def test_continued_by_another_number_of_processes(logs, straight, stopped, tmp_path, before, after):
    out = shutil.copytree(stopped[before], tmp_path / "out")
    assert last_checkpoint(out)[0] == 4
    world, strategy = HOW[after]

    train(logs, out, "sft", *LONGER, *strategy, world=world)

    assert distance(adapter_of(out), adapter_of(straight)) < SAME


def test_checkpoints_of_every_strategy_are_one_format(stopped):
    found = []
    for out in stopped.values():
        _, checkpoint = last_checkpoint(out)
        assert checkpoint is not None
        state = torch.load(checkpoint, weights_only=True)
        (optimizer,) = state["optimizer_states"]
        shapes = {name: tuple(value.shape) for name, value in state["state_dict"].items()}
        moments = {name: tuple(value["exp_avg"].shape) for name, value in optimizer["state"].items()}
        found.append((shapes, moments, optimizer["param_groups"][0]["params"]))
    assert all(other == found[0] for other in found[1:])
    assert found[0][0] == found[0][1] and all("lora_" in name for name in found[0][0])
