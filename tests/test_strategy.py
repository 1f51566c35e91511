"""What of the `strategy` group fits together, and what Lightning is given for it."""

import pytest
from lightning.pytorch.strategies import DDPStrategy

from paft.training.strategy import ShardedStrategy, make_strategy


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("strategy=ddp", "strategy.cpu_offload=true"), "cpu_offload=true needs strategy=fsdp.*got ddp"),
        (("strategy=fsdp", "strategy.cpu_offload=true"), "needs trainer.devices of at least 2, got 1 device"),
        (
            ("strategy=fsdp", "trainer.devices=4", "strategy.shard_size=2"),
            "needs strategy=fsdp_hybrid, got fsdp",
        ),
        (
            ("strategy=fsdp_hybrid", "trainer.devices=4", "strategy.shard_size=3"),
            "shard_size must be a divisor of the 4 devices and at least 2.*got 3",
        ),
        (("strategy=fsdp_hybrid", "trainer.devices=4", "strategy.shard_size=1"), "divisor of the 4 .* got 1"),
    ],
)
def test_what_does_not_fit_is_refused(compose, overrides, message):
    with pytest.raises(ValueError, match=message):
        compose(*overrides)


@pytest.mark.parametrize(
    ("overrides", "sizes"),
    [
        (("strategy=fsdp", "trainer.devices=4"), (4, 1)),
        (("strategy=fsdp", "trainer.devices=4", "trainer.num_nodes=2"), (8, 1)),
        (("strategy=fsdp_hybrid", "trainer.devices=4", "trainer.num_nodes=2"), (2, 4)),
        (("strategy=fsdp_hybrid", "trainer.devices=8", "strategy.shard_size=2"), (4, 2)),
        (("strategy=fsdp_hybrid", "trainer.devices=4"), (4, 1)),  # one node: nothing to replicate
    ],
)
def test_sizes_of_the_mesh(compose, overrides, sizes):
    """(data parallel, tensor parallel) as Lightning calls them: ranks that are sharded over, or copies and shards."""
    strategy = make_strategy(compose(*overrides).running)

    assert isinstance(strategy, ShardedStrategy)
    assert (strategy._data_parallel_size, strategy._tensor_parallel_size) == sizes


@pytest.mark.parametrize("name", ["single", "ddp", "fsdp", "fsdp_hybrid"])
def test_one_device_has_nothing_to_share(compose, name):
    assert make_strategy(compose(f"strategy={name}").running) == "auto"


def test_ddp(compose):
    assert isinstance(make_strategy(compose("strategy=ddp", "trainer.devices=2").running), DDPStrategy)


def test_offloaded_gradients_are_summed_on_the_host(compose):
    gpus = ("trainer=gpu", "trainer.devices=2", "strategy=fsdp")

    offloaded, on_the_gpu = (
        make_strategy(compose(*gpus, *how).running) for how in (("strategy.cpu_offload=true",), ())
    )

    assert offloaded._process_group_backend == "cpu:gloo,cuda:nccl"
    assert on_the_gpu._process_group_backend is None
