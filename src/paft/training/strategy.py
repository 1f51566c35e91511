"""Lightning's strategy for the `strategy` group: one device, copies that share gradients, or shards."""

from typing import Any

from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from typing_extensions import override

from paft.config import RunConfig, StrategyName


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 whose checkpoints are one file with the trainable parameters whole, for any number of ranks to resume.

    Lightning's own are either a folder that only torch's pickle-reading loader opens, or hold the frozen base.
    """

    def __init__(self, *, num_replicas: int, shard_size: int) -> None:
        # "auto" sizes would give every device of a node the same rows. Lightning calls the second dimension
        # tensor parallel; here it is the one that hybrid sharding shards along
        sizes = (num_replicas, shard_size) if num_replicas > 1 else (shard_size, 1)
        super().__init__(*sizes, save_distributed_checkpoint=False)

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        assert self.model is not None
        return get_model_state_dict(self.model, options=options)


def make_strategy(config: RunConfig) -> Strategy | str:
    """`fsdp` shards over all devices; `fsdp_hybrid` inside a node (or `shard_size` devices), and replicates across."""
    world = config.trainer.devices * config.trainer.num_nodes
    match config.strategy.name:
        case StrategyName.single:
            return "auto"
        case StrategyName.ddp:
            return DDPStrategy()
        case StrategyName.fsdp:
            return ShardedStrategy(num_replicas=1, shard_size=world)
        case StrategyName.fsdp_hybrid:
            size = config.strategy.shard_size or config.trainer.devices
            return ShardedStrategy(num_replicas=world // size, shard_size=size)
