"""The L1 penalty on sharded factors: each rank does its own rows, and together they give the whole gradient."""

from pathlib import Path

import pytest
import torch
from ranks import spawn
from safetensors.torch import load_file, save_file
from tiny import BRANCHES, distance, gradients, make, move
from torch.distributed.device_mesh import init_device_mesh

from paft.model.shards import whole
from paft.training.strategy import shard

SAME = 1e-6
"""Relative distance of float32 sums in another order; measured below 1e-7."""


def own_penalty(branch: str, shape: tuple[int, int], folder: Path) -> None:
    """One rank's part: its penalty, the rows of B it works on, and on rank 0 the gathered gradients."""
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("data_parallel", "tensor_parallel"))
    module = move(make(BRANCHES[branch]))
    shard(module.backbone, mesh)
    penalty = module.penalty()
    assert penalty is not None
    penalty.backward()

    rows = sum(len(B) for _, B, _ in module.backbone.own_factors())
    found = {name: whole(gradient) for name, gradient in gradients(module).items()}
    found |= {"penalty": penalty.detach(), "rows": torch.tensor(rows)}
    save_file(found, folder / f"rank{torch.distributed.get_rank()}.safetensors")


@pytest.mark.parametrize("branch", ["sft+l1", "sft+l1 factors"])
@pytest.mark.parametrize(("shape", "shards"), [((2, 1), 2), ((4, 1), 4), ((2, 2), 2)])
def test_penalty_of_shards_against_one_process(tmp_path, branch, shape, shards):
    module = move(make(BRANCHES[branch]))
    expected = module.penalty()
    expected.backward()
    world = shape[0] * shape[1]

    spawn(own_penalty, branch, shape, tmp_path, world=world)

    ranks = [load_file(tmp_path / f"rank{rank}.safetensors") for rank in range(world)]
    parts, rows = [rank.pop("penalty") for rank in ranks], [int(rank.pop("rows")) for rank in ranks]
    assert sum(rows[:shards]) == sum(len(B) for _, B, _ in module.backbone.factors())
    assert max(rows) < 1.5 * min(rows)
    torch.testing.assert_close(sum(parts[:shards]), expected.detach(), rtol=SAME, atol=0)
    assert all(distance(rank, gradients(module)) < SAME for rank in ranks)
