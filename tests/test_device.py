"""CUDA's forms of the arithmetic, run on a CPU in float32, against the CPU's own."""

import math
from dataclasses import asdict, replace

import pytest
import torch
from tiny import (
    BRANCHES,
    SAME,
    adapter,
    branch,
    distance,
    gradient_of_a_step,
    make,
    move,
    pairs,
    rows_for,
    run,
    sft_rows,
)

from paft.config import LoraConfig, SFTConfig
from paft.device import CPU, CUDA, FORMS, forms_on
from paft.forward.batches import sft_tensors
from paft.forward.pairs import pair_tensors
from paft.model.layers.attention import LONGEST
from paft.objectives import DPO


@pytest.fixture
def as_cuda(monkeypatch):
    """Called, it makes the CPU take what applies on CUDA."""
    return lambda: monkeypatch.setitem(FORMS, "cpu", CUDA)


def test_a_device_that_nobody_has_written_for_is_taken_for_a_cpu():
    assert forms_on("cuda") is CUDA and forms_on("cpu") is forms_on("mps") is CPU
    assert all(
        CUDA_form != CPU_form
        for CUDA_form, CPU_form in zip(asdict(CUDA).values(), asdict(CPU).values(), strict=True)
    )


@pytest.mark.parametrize("name", ["sft", "sft+l1", "dpo", "dpo ld", "orpo", "kto"])
def test_the_gradient_of_a_step(name, as_cuda):
    plain = gradient_of_a_step(BRANCHES[name])
    as_cuda()
    assert distance(gradient_of_a_step(BRANCHES[name]), plain) < SAME
    assert distance(gradient_of_a_step(BRANCHES[name], micro_batch_tokens=90), plain) < SAME
    assert distance(gradient_of_a_step(BRANCHES[name], gradient_checkpointing=True), plain) < SAME


@pytest.mark.parametrize("kind", [SFTConfig, DPO])
def test_the_gradient_of_a_step_with_dropout(kind, as_cuda):
    config = branch(kind, lora=LoraConfig(rank=4, alpha=8, dropout=0.1))
    plain = gradient_of_a_step(config)
    as_cuda()
    assert distance(gradient_of_a_step(config), plain) < SAME


def test_the_optimizer(as_cuda):
    """A few steps of AdamW: its one kernel rounds otherwise, a step of lr 0.01 in some 1e-7."""
    adapters, config = [], branch(SFTConfig)
    for fused in (False, True):
        if fused:
            as_cuda()
        module = move(make(config, steps=3))
        run(module, rows_for(config, 24))
        adapters.append(adapter(module))
    assert distance(adapters[1], adapters[0]) < 1e-4


def test_rows_of_any_length_are_packed(as_cuda):
    policy = move(make(branch(SFTConfig))).backbone
    assert policy.packs(LONGEST) and not policy.packs(LONGEST + 1)
    as_cuda()
    assert policy.packs(LONGEST + 1)


def test_packed_rows_and_pairs_are_those_of_padded_ones(as_cuda):
    policy = move(make(branch(DPO))).backbone
    as_cuda()
    texts, answers = sft_tensors(sft_rows(6), 0), pair_tensors(policy, pairs(6), 0)
    assert answers.segments is not None
    packed = [policy(*texts), answers.logps(policy)]
    policy.base.paft_paths = replace(policy.base.paft_paths, packed=False)
    padded = [policy(*texts), answers.logps(policy)]
    for ours, theirs in zip(packed, padded, strict=True):
        torch.testing.assert_close(ours, theirs)
        assert math.isfinite(float(ours.sum())) and ours.abs().sum() > 0
