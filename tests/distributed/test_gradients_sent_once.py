"""The gradients of a step's micro-batches go between the ranks once, with those of the last one."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.overrides.distributed import prepare_for_backward
from probe import Collectives
from ranks import seen_by, spawn
from tiny import BRANCHES, gradients, make, move, rows_for, whole_batch
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from paft.config import SFTConfig, Tuning
from paft.files.jsonfile import write_json
from paft.model.shards import whole
from paft.training.strategy import sent_with_the_last, shard

PASSES = 3
FULL = SFTConfig(tuning=Tuning.full, global_batch_size=8)


def tell(folder: Path, found: dict[str, Any]) -> None:
    write_json(folder / f"rank{dist.get_rank()}.json", found)


def losses(module: Any) -> list[torch.Tensor]:
    """Of three micro-batches of this rank, made as they are asked for."""
    rows = rows_for(module.config, 6 * PASSES)
    mine = list(rows[dist.get_rank() :: 2])
    return (module.micro_loss(mine[i::PASSES], whole_batch(rows))[0] for i in range(PASSES))  # type: ignore[return-value]


def on_shards(folder: Path, full: bool) -> None:
    module = make(FULL if full else BRANCHES["sft"])
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    shard(module.backbone, mesh)
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(model=module))
    sent, makes = [], iter(losses(module))
    for number in range(1, PASSES + 1):
        with Collectives() as calls, sent_with_the_last(trainer, module.backbone, last=number == PASSES):
            next(makes).backward()
        sent.append(sum(kind == "scatter" for kind, _ in calls.calls))
    norm = sum(float(whole(p.grad).square().sum()) for p in module.parameters() if p.grad is not None)
    tell(folder, {"sent": sent, "norm": norm})


def on_copies(folder: Path) -> None:
    dist.init_process_group("gloo")
    module = move(make(BRANCHES["sft"]))
    copies, sent = DistributedDataParallel(module), [0] * PASSES
    number = 0

    def count(_: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        sent[number] += 1
        mean = bucket.buffer().div_(2)
        done = dist.all_reduce(mean, async_op=True).get_future()
        return done.then(lambda f: f.value()[0])

    copies.register_comm_hook(None, count)
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(model=copies))
    for number, loss in enumerate(losses(module)):
        with sent_with_the_last(trainer, module.backbone, last=number == PASSES - 1):
            prepare_for_backward(copies, loss)
            loss.backward()
    found = gradients(module)
    alone = move(make(BRANCHES["sft"]))
    rows = rows_for(alone.config, 6 * PASSES)
    expected = alone.micro_loss(list(rows), whole_batch(rows))[0] / 2  # the ranks' sums are averaged
    expected.backward()
    off = max(float((found[n] - g).abs().max() / g.abs().max()) for n, g in gradients(alone).items())
    tell(folder, {"sent": sent, "off": off})


@pytest.mark.parametrize("full", [False, True])
def test_shards_reduce_once_but_all_weights_each_time(tmp_path, full):
    spawn(on_shards, tmp_path, full, world=2)

    one, other = seen_by(tmp_path, 2)
    units = one["sent"][-1]
    assert units > 1 and one["sent"] == ([units] * PASSES if full else [0] * (PASSES - 1) + [units])
    assert one["norm"] == other["norm"] > 0


def test_copies_reduce_once_and_what_one_process_finds(tmp_path):
    spawn(on_copies, tmp_path, world=2)

    for rank in seen_by(tmp_path, 2):
        assert rank["sent"][:-1] == [0] * (PASSES - 1) and rank["sent"][-1] > 0
        assert rank["off"] < 1e-4  # float32 sums in another order
