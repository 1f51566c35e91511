"""Two CPU processes give the adapter of one: a training stage as its own torchrun child."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import distance

from paft.command.pipeline import context_of
from paft.config import RunConfig, decode
from paft.graph.build import build
from paft.graph.stage import Stage, canonical
from paft.store.store import Store

SAME = 2e-5
"""As in tests/distributed/test_strategies.py."""
SMOKE = ("experiment=smoke", "callbacks=none", "sft.max_steps=3", "preference.max_steps=3")


def trained(compose, logs: Path, branch: str, *overrides: str) -> dict[str, torch.Tensor]:
    """The branch's adapter, trained in a store of its own."""
    config = compose(*SMOKE, *overrides, f"logs={logs}")
    cell = build(config)
    (stage,) = (s for s in cell.walk() if s.name == branch)
    context = context_of(config, Store(config.store), cell)

    def run(stage: Stage, inputs: dict[str, Path], out: Path) -> dict[str, object]:
        return context.run(stage, inputs, out)

    return load_file(context.store.ensure(stage, run) / "adapter" / "adapter_model.safetensors")


@pytest.mark.slow
def test_two_processes_against_one(compose, tmp_path):
    """What the ranks do is tested in tests/distributed; this is the command that starts them, references included."""
    one = trained(compose, tmp_path / "one", "preference")
    two = trained(compose, tmp_path / "two", "preference", "trainer.devices=2", "strategy=fsdp")

    assert distance(two, one) < SAME


def test_several_nodes_are_refused_with_the_way_out(compose, tmp_path):
    with pytest.raises(ValueError, match=r"trainer.num_nodes=2.*set it to 1"):
        trained(compose, tmp_path, "sft", "trainer.num_nodes=2", "strategy=ddp")


def test_decode_gives_back_the_config(compose):
    config = compose(*SMOKE, "merge=dare", "preference=orpo")
    again = decode(canonical(config, whole=True))
    assert isinstance(again, RunConfig)
    assert again == config


def test_decode_refuses_names_that_are_not_configs():
    with pytest.raises(ValueError, match="unknown config type 'Path'"):
        decode({"type": "Path"})
