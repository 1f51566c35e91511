"""What training every weight costs, against what torch counts and holds."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_cost import DEEP, LABELS, B, T, counting, step

from paft.config import L1Config, LoraConfig, MergeConfig, SFTConfig, Space, Tuning
from paft.cost.flops_and_bytes import (
    Batch,
    branch_flops,
    forward_flops,
    head_parameters,
    parameters,
    trained_memory,
    training_flops,
    training_memory,
)
from paft.cost.merges import MergeWork, merge_memory, merge_seconds
from paft.cost.shape import read_shape, shape_of
from paft.cost.work import Work
from paft.graph.build import build
from paft.merge.methods import Iso, Ties, Tsv, Wudi
from paft.merge.space import merge_tensor
from paft.model.base import base_folder
from paft.model.full import FullPolicy
from paft.plan.measured import bytes_of, merge_work
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


# --- merges ------------------------------------------------------------------------------------------

SINGULAR: list[MergeConfig] = [Tsv(), Iso(), Ties(density=0.5, space=Space.svd)]


def stage_in(compose, name: str, *words: str):
    cell = build(compose("experiment=smoke", *words))
    (stage,) = (s for s in cell.walk() if s.name == name)
    return stage


def work_of(compose, *words: str) -> MergeWork:
    merge = stage_in(compose, "merge", *words)
    return merge_work(shape_of(merge.config.model), merge)


@pytest.mark.parametrize("method", SINGULAR, ids=lambda m: m.name)
def test_decompositions_against_those_that_a_merge_calls(monkeypatch, method):
    """Of a square matrix, in n m^2 of the matrices that numpy is asked to decompose."""
    sizes, svd = [], np.linalg.svd

    def counted(matrix, **how):
        sizes.append(min(matrix.shape) ** 2 * max(matrix.shape))
        return svd(matrix, **how)

    monkeypatch.setattr(np.linalg, "svd", counted)
    deltas = [np.random.default_rng(i).standard_normal((32, 32)).astype(np.float32) for i in range(2)]
    merge_tensor(method, deltas)
    asked = 2 if method.space is Space.svd else method.decompositions
    assert sum(sizes) == asked * 32**3


def test_a_plan_decomposes_where_a_delta_has_no_factors(compose):
    full = ("sft.tuning=full",)
    assert work_of(compose, "merge=tsv").decompositions == 0
    assert work_of(compose, *full, "merge=ties").decompositions == 0
    for words, method in (("merge=tsv", Tsv()), ("merge=iso", Iso()), ("merge=wudi", Wudi())):
        assert work_of(compose, *full, words).decompositions == method.decompositions > 0
    assert work_of(compose, *full, "merge=ties", "merge.space=svd").decompositions == 2


def test_matrices_of_a_merge_are_those_of_the_model(compose):
    work = work_of(compose, "sft.tuning=full", "merge=iso")
    model = load_base(base_folder(compose("experiment=smoke").model), compose("experiment=smoke").model)
    held = sorted(math.prod(p.shape) for p in model.parameters() if p.ndim == 2)
    assert sorted(n * m for n, m in work.matrices) == held


def test_what_decompositions_add_to_a_merge(shape):
    plain, singular = MergeWork(shape, True), MergeWork(shape, True, 4)
    for proved, merges in ((False, 1), (True, 3)):
        how = {"item_bytes": 2, "proved": proved}
        added = merge_seconds(singular, **how) - merge_seconds(plain, **how)
        alone = merge_seconds(MergeWork(shape, True, 1), item_bytes=2, proved=False)
        once = alone - merge_seconds(plain, item_bytes=2, proved=False)
        assert added == pytest.approx(4 * merges * once)
    how = {"item_bytes": 2, "proved": False, "limit": 1e9}
    assert merge_memory(singular, **how) > merge_memory(plain, **how)


def test_statistics_of_every_weight_take_its_gradient_and_its_squares(compose):
    words = ("merge=fisher", "sft.tuning=full", "preference.tuning=full", "paradigm=parallel")
    config = compose("experiment=smoke", *words)
    cell = build(config)
    stages = {s.config.branch: s for s in cell.walk() if s.name == "statistics"}
    shape = shape_of(cell.config.model)
    assert bytes_of(stages["sft"], shape, config.hardware) == 3 * 4 * parameters(shape)
