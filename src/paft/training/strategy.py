"""The `strategy` group: one device, copies that share gradients, or shards, as Lightning is told and FSDP2 does it."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from typing_extensions import override

from paft.config import Running, StrategyName
from paft.model.full import FullPolicy
from paft.model.policy import Policy
from paft.private import move_only_rows, undivided


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 whose checkpoints are one file with the trainable parameters whole, for any number of ranks to resume.

    Lightning's own are either a folder that only torch's pickle-reading loader opens, or hold the frozen base.
    """

    def __init__(self, *, num_replicas: int, shard_size: int, backend: str | None = None) -> None:
        # "auto" sizes would give every device of a node the same rows. Lightning calls the second dimension
        # tensor parallel; here it is the one that hybrid sharding shards along
        sizes = (num_replicas, shard_size) if num_replicas > 1 else (shard_size, 1)
        super().__init__(*sizes, save_distributed_checkpoint=False, process_group_backend=backend)

    @override
    def model_to_device(self) -> None:
        """`fully_shard` has put every parameter where it belongs, with CPU offload that is the host's memory."""
        assert self.lightning_module is not None
        move_only_rows(self.lightning_module, self.root_device)

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        """On rank 0 the trainable parameters, whole; on the others nothing."""
        assert self.model is not None
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        return get_model_state_dict(self.model, options=options)

    @override
    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The same of the optimizer, under the parameters' names.

        Lightning numbers them instead, and counts the frozen ones too, which no other strategy does.
        """
        assert self.model is not None
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return get_optimizer_state_dict(self.model, optimizer, options=options)


def make_strategy(config: Running) -> Strategy | str:
    """`fsdp` shards over all devices; `fsdp_hybrid` inside a node (or `shard_size` devices), and replicates across.

    One device has nothing to share, whatever the strategy.
    """
    world, name = config.trainer.world_size, config.strategy.name
    if name is StrategyName.single or world == 1:
        return "auto"
    if name is StrategyName.ddp:
        return DDPStrategy()
    # norms of offloaded gradients are summed on the host, which nccl cannot do
    offloaded = config.strategy.cpu_offload and config.trainer.accelerator == "gpu"
    return ShardedStrategy(
        num_replicas=world // config.num_shards,
        shard_size=config.num_shards,
        backend="cpu:gloo,cuda:nccl" if offloaded else None,
    )


def shard(policy: Policy, mesh: DeviceMesh, *, cpu_offload: bool = False) -> int:
    """FSDP2: every decoder layer is a unit, and what is left one more; returns the size of a shard group.

    A mesh whose second dimension is larger than 1 shards along it and replicates along the first.
    """
    # The frozen bfloat16 base and the float32 factors of a layer share a unit: they are gathered as bytes, each in
    # its own type, and only factors have gradients to scatter. Units of their own would hold and send as many
    # bytes, in twice as many calls (tests/distributed/test_sharded_memory.py)
    hybrid = mesh["tensor_parallel"].size() > 1
    over = mesh if hybrid else mesh["data_parallel"]
    offload = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if cpu_offload else OffloadPolicy()
    for unit in (*decoder_layers(policy), policy):
        fully_shard(unit, mesh=over, offload_policy=offload)
    for layer, following in pairwise(decoder_layers(policy)):
        layer.set_modules_to_forward_prefetch(
            [following]
        )  # asked for before the layer's own kernels are started
    return over.size(-1)


@contextmanager
def sent_with_the_last(trainer: L.Trainer, policy: Policy, *, last: bool) -> Iterator[None]:
    """Inside, a micro-batch's gradients stay on their rank, and go to the others with those of the `last` one.

    The gradients of shards are whole until then: adapters have the room, all weights have not and send each time.
    """
    copies = trainer.strategy.model
    if last:
        yield
    elif isinstance(copies, DistributedDataParallel):
        with copies.no_sync():
            yield
    elif isinstance(policy, FSDPModule) and not isinstance(policy, FullPolicy):
        policy.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            policy.set_requires_gradient_sync(True)
    else:
        yield


def decoder_layers(policy: Policy) -> Iterator[Any]:
    names = set(undivided(policy.base))
    yield from (m for m in policy.modules() if type(m).__name__ in names)


def largest_of_ranks(number: int, trainer: L.Trainer) -> int:
    """The largest of the ranks' numbers, known to all of them."""
    if trainer.world_size == 1:
        return number
    largest = torch.tensor(number, device=trainer.strategy.root_device)
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return int(largest)
