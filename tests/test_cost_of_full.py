"""What training every weight costs, against what torch counts and holds."""

from dataclasses import replace

import pytest
import torch
from test_cost import DEEP, LABELS, B, T, counting, step

from paft.config import L1Config, LoraConfig, SFTConfig, Tuning
from paft.cost.flops_and_bytes import (
    Batch,
    branch_flops,
    forward_flops,
    head_parameters,
    trained_memory,
    training_flops,
    training_memory,
)
from paft.cost.shape import read_shape
from paft.cost.work import Work
from paft.model.base import base_folder
from paft.model.full import FullPolicy
from paft.proof.base import load_base

WORK = Work(B * T, B * T * T, B * LABELS)
FULL = SFTConfig(tuning=Tuning.full)


@pytest.fixture
def policy() -> FullPolicy:
    policy = FullPolicy(load_base(base_folder(DEEP), DEEP))
    policy.hold_base()
    policy.train()
    return policy


@pytest.fixture(scope="module")
def shape():
    return read_shape(base_folder(DEEP) / "config.json")


def test_training_flops_against_torch(policy, shape):
    with counting() as counter:
        step(policy).sum().backward()

    assert training_flops(shape, WORK, None) == pytest.approx(counter.get_total_flops(), rel=1e-3)


def test_a_branch_trains_all_weights_whatever_its_lora_and_penalty(shape):
    how = {"steps": 5, "forwards": 0, "recompute": False}
    expected = training_flops(shape, WORK, None)
    for branch in (FULL, replace(FULL, lora=LoraConfig(rank=99), l1=L1Config(1e-4))):
        assert branch_flops(shape, branch, WORK, **how) == expected


def test_recomputation_adds_a_forward_pass_of_the_layers(shape):
    work = Work(B * T, B * T * T, 0)
    added = training_flops(shape, work, None, recompute=True) - training_flops(shape, work, None)
    assert added == forward_flops(shape, work)


def test_memory_of_what_is_trained_against_its_tensors(policy, shape):
    deltas = [t.delta for t in policy.trained]
    optimizer = torch.optim.AdamW(deltas)
    step(policy).sum().backward()
    optimizer.step()
    moments = [v for state in optimizer.state.values() for k, v in state.items() if k != "step"]
    held = sum(t.nbytes for t in [*deltas, *(d.grad for d in deltas), *moments, *policy.start])
    at_work = 8 * head_parameters(shape)
    assert trained_memory(shape, None, item_bytes=4) == held + at_work


def test_shards_divide_what_is_trained(shape):
    how = {"item_bytes": 2, "recompute": False}
    alone = training_memory(shape, None, Batch(B * T, T), **how)
    shared = training_memory(shape, None, Batch(B * T, T), shards=4, **how)
    assert shared["adapter"] == alone["adapter"] / 4
    frozen = training_memory(shape, LoraConfig(rank=4), Batch(B * T, T), shards=4, **how)
    assert shared["base"] > frozen["base"]  # deltas are gathered with their weights
