"""A rank holds its share of the base, the factors and their optimizer, and saving gathers the factors alone."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from probe import Collectives
from ranks import seen_by, spawn, train
from resumable import configured
from safetensors.torch import load_file
from tiny import BFLOAT16, BRANCHES, make, rows_for, whole_batch
from torch.distributed.device_mesh import init_device_mesh

from paft import device
from paft.files.jsonfile import write_json
from paft.model.base import base_folder
from paft.model.policy import Policy
from paft.proof.base import load_base
from paft.training.strategy import decoder_layers, shard

HOW = (
    "model.dtype=bfloat16",
    "model.num_layers=3",
    "sft.lora.rank=6",
    "sft.lora.dropout=0",
    "sft.max_steps=2",
)
# one forward pass a step, as torch's tracker of sharded memory follows no more
HOW += ("trainer.micro_batch_tokens=100000", "data.sft.max_length=256", "data.sft.max_prompt_length=192")
FLOAT32 = 4


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def policy(logs) -> Policy:
    config = configured(logs, *HOW)
    return Policy(load_base(base_folder(config.model), config.model), config.sft.lora)


def shares(module: torch.nn.Module, ranks: int) -> dict[str, int]:
    """Bytes of each parameter on one of `ranks`: rows are dealt out whole, so the last may hold padding."""
    return {
        name: math.ceil(len(p) / ranks) * p[0].numel() * p.element_size()
        for name, p in module.named_parameters()
    }


def factors(sizes: dict[str, int]) -> int:
    return sum(size for name, size in sizes.items() if "lora_" in name)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((2, 2, "strategy=fsdp"), id="fsdp 2", marks=pytest.mark.exhaustive),
        pytest.param((4, 4, "strategy=fsdp"), id="fsdp 4"),
        pytest.param((4, 2, "strategy=fsdp_hybrid"), id="hybrid 2x2"),
    ],
)
def run(request, logs) -> tuple[Path, int, list[dict[str, Any]]]:
    """(folder, ranks that share one copy of the parameters, what each rank saw)."""
    world, shards, strategy = request.param
    nodes = world // shards if "hybrid" in strategy else 1
    out = logs / f"{strategy}{world}"
    train(logs, out, "sft", *HOW, strategy, world=world, nodes=nodes, probe=", memory: true")
    return out, shards, seen_by(out, world)


def test_a_rank_holds_its_share_of_every_parameter(run, policy):
    _, shards, ranks = run
    expected = {f"policy.{name}": size for name, size in shares(policy, shards).items()}
    whole = sum(p.nbytes for p in policy.parameters())
    padding = sum(p[0].nbytes for p in policy.parameters())  # at most a row of each

    assert all(rank["held"] == expected for rank in ranks)
    assert whole / shards <= sum(expected.values()) <= whole / shards + padding


def test_a_rank_holds_the_moments_of_its_share_of_the_factors(run, policy):
    _, shards, ranks = run
    trained = [p for p in policy.parameters() if p.requires_grad]

    # two float32 moments; rank r of a group holds rows r * ceil(rows / shards) and on, and no padding
    for r, rank in enumerate(ranks):
        rows = [len(p.chunk(shards)[r % shards]) if r % shards < len(p.chunk(shards)) else 0 for p in trained]
        moments = sum(2 * n * p[0].numel() * FLOAT32 for n, p in zip(rows, trained, strict=True))
        assert rank["moments"] == moments <= 2 * factors(shares(policy, shards))


def test_peak_is_the_share_and_one_layer_in_use_and_one_on_its_way(run, policy):
    _, shards, ranks = run
    mine = shares(policy, shards)
    layer = shards * sum(shares(next(decoder_layers(policy)), shards).values())
    embeddings_and_head = shards * sum(size for name, size in mine.items() if "layers." not in name)

    for rank in ranks:
        assert rank["peak"]["SHARDED_PARAM"] == sum(mine.values())
        assert embeddings_and_head <= rank["peak"]["UNSHARDED_PARAM"] <= embeddings_and_head + layer
        assert rank["peak"]["ALL_GATHER"] <= layer


def test_saving_gathers_the_factors_and_no_base_weight(run, policy):
    out, shards, ranks = run
    whole = shards * factors(shares(policy, shards))

    for rank in ranks:
        assert rank["gathered"] == {"adapter": whole, "checkpoint": 3 * whole}  # values and two moments
    saved = load_file(out / "probe" / "adapter_model.safetensors")
    state = torch.load(out / "probe.ckpt", weights_only=True)["state_dict"]
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    for tensors in (saved, state):
        assert all("lora_" in name for name in tensors)
        assert sum(t.numel() for t in tensors.values()) == trained


def passes(folder: Path) -> None:
    """What one rank's forward and backward pass send."""
    device.multiplies_bfloat16 = lambda: True  # as in the process that expects it
    module = make(BRANCHES["sft"], model=BFLOAT16)
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    shard(module.backbone, mesh)
    rows = rows_for(module.config, 4)
    with Collectives() as forward:
        loss, _ = module.micro_loss(list(rows), whole_batch(rows))
    with Collectives() as backward:
        loss.backward()
    found = {"forward": forward.calls, "backward": backward.calls}
    write_json(folder / f"rank{torch.distributed.get_rank()}.json", found)


def test_a_layer_is_gathered_in_one_call_and_only_factors_are_reduced(tmp_path):
    policy = make(BRANCHES["sft"], model=BFLOAT16).backbone
    layers = list(decoder_layers(policy))
    one = shares(layers[0], 2)
    layer, trained = 2 * sum(one.values()), 2 * factors(one)
    rest = 2 * sum(shares(policy, 2).values()) - len(layers) * layer

    spawn(passes, tmp_path, world=2)

    for rank in seen_by(tmp_path, 2):
        assert rank["forward"] == [["gather", rest]] + len(layers) * [["gather", layer]]
        assert sorted(rank["backward"]) == sorted(
            len(layers) * [["gather", layer]] + len(layers) * [["scatter", trained]]
        )
