"""QLoRA on several processes: packed weights are shared out like any others, and the adapter is the same."""

import math
from pathlib import Path

import pytest
import torch
from ranks import adapter_of, seen_by, train
from test_strategies import HYBRID, OBJECTIVES, SHORT
from tiny import distance

from paft.cost.flops_and_bytes import NF4_BYTES
from paft.training.checkpoint import last_checkpoint

pytest.importorskip("bitsandbytes", reason="pip install 'paft[qlora]'")

SAME = 1e-4
"""As in test_strategies, measured up to 3e-5: with 4-bit weights more of DPO's gradients are small."""
NF4 = ("model.quantization=nf4", *SHORT)


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.mark.parametrize("objective", ["sft+l1", pytest.param("dpo", marks=pytest.mark.exhaustive)])
def test_several_processes_against_one(logs, tmp_path, objective):
    how = (*OBJECTIVES[objective], *NF4)
    one = train(logs, tmp_path / "one", *how)

    ddp = train(logs, tmp_path / "ddp", *how, "strategy=ddp", world=2)
    fsdp = train(logs, tmp_path / "fsdp", *how, "strategy=fsdp", world=2)
    hybrid = train(logs, tmp_path / "hybrid", *how, *HYBRID, "trainer.gradient_checkpointing=true", world=4)

    for several in (ddp, fsdp, hybrid):
        assert distance(adapter_of(several), adapter_of(one)) < SAME
    assert_packed_weights_are_shared(seen_by(one, 1)[0]["held"], seen_by(fsdp, 2), shards=2)
    assert_packed_weights_are_shared(seen_by(one, 1)[0]["held"], seen_by(hybrid, 4), shards=2)
    _, checkpoint = last_checkpoint(fsdp)
    assert checkpoint is not None
    assert all("lora_" in n for n in torch.load(checkpoint, weights_only=True)["state_dict"])


def assert_packed_weights_are_shared(whole: dict[str, int], ranks: list[dict], *, shards: int) -> None:
    """A packed weight is a column of bytes; block maxima, 3 % of it, stay on every rank."""
    packed = [name for name in whole if name.endswith("base_layer.weight")]
    assert packed and NF4_BYTES < 0.52
    for rank in ranks:
        assert all(rank["held"][name] == math.ceil(whole[name] / shards) for name in packed)
