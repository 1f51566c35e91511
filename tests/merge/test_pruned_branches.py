"""Branches made sparse before they are merged, and what is measured of two deltas, against plain torch."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from every_merge import merges, named
from full_models import save_adapter, save_base, save_tuned, weights_of
from torch import Tensor

from paft.config import MergeConfig, MergeOutput, Norm, PruneBy, RunConfig, Scope, Space
from paft.delta.delta import Dense, Factors
from paft.delta.statistics import read_adapter
from paft.graph.build import build
from paft.merge.apply import merge_adapters
from paft.merge.methods import DareLinear, Learned, TaskArithmetic, Ties
from paft.merge.overlap import overlap

Deltas = dict[str, Tensor]
SHARE = 0.9


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def branches(base, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    sft = save_adapter(base, folder / "sft", 1)
    return {"sft": sft, "preference": save_adapter(base, folder / "preference", 2, r=6)}


def deltas(folder: Path) -> Deltas:
    return {name: delta.dense().float() for name, delta in read_adapter(folder).items()}


def merged(base: Path, branches: dict[str, Path], method: MergeConfig, out: Path) -> tuple[dict, Deltas]:
    report = merge_adapters(base, branches, method, out)
    before, after = weights_of(base), weights_of(out)
    return report, {name: after[name] - before[name] for name in deltas(branches["sft"])}


def norm(tensors: Deltas) -> float:
    return math.sqrt(sum(float(d.double().square().sum()) for d in tensors.values()))


def largest(tensors: Deltas, share: float) -> Deltas:
    """All but the `share` of smallest magnitude over all tensors together, by one sort."""
    flat = torch.cat([d.abs().flatten() for d in tensors.values()])
    kept = int(flat.numel() * (1 - share)) + 1
    threshold = torch.topk(flat, kept).values[-1]
    return {name: torch.where(d.abs() >= threshold, d, 0) for name, d in tensors.items()}


def assert_close(found: Deltas, expected: Deltas) -> None:
    for name, delta in found.items():
        torch.testing.assert_close(delta, expected[name], rtol=0, atol=2e-6)  # differences of weights


def test_by_magnitude_the_largest_of_the_whole_branch_stay(base, branches, tmp_path):
    sft, preference = (deltas(folder) for folder in branches.values())
    method = TaskArithmetic(prune_sft=SHARE)
    _, found = merged(base, branches, method, tmp_path / "out")
    kept = largest(sft, SHARE)

    assert_close(found, {name: kept[name] + preference[name] for name in sft})
    shares = [float((d != 0).float().mean()) for d in kept.values()]
    assert max(shares) > 1.5 * min(shares), "tensors lose unlike shares"


def test_either_branch_is_pruned_by_its_own_share(base, branches, tmp_path):
    sft, preference = (deltas(folder) for folder in branches.values())
    method = TaskArithmetic(prune_sft=0.5, prune_preference=0.8)
    _, found = merged(base, branches, method, tmp_path / "out")
    first, second = largest(sft, 0.5), largest(preference, 0.8)
    assert_close(found, {name: first[name] + second[name] for name in sft})


def at_random(base: Path, branches: dict[str, Path], out: Path, seed: int | None = None) -> Deltas:
    method = TaskArithmetic(prune_sft=SHARE, prune_by=PruneBy.random, prune_seed=seed, weights=[1, 0])
    return merged(base, branches, method, out)[1]


def test_at_random_each_element_stays_as_it_is_with_one_probability(base, branches, tmp_path):
    sft, found = deltas(branches["sft"]), at_random(base, branches, tmp_path / "out")
    kept = {name: delta.abs() > 1e-6 for name, delta in found.items()}
    assert_close(found, {name: torch.where(kept[name], sft[name], 0) for name in sft})

    size = sum(d.numel() for d in sft.values())
    number = sum(int(mask.sum()) for mask in kept.values())
    assert abs(number - (1 - SHARE) * size) < 5 * math.sqrt(size * SHARE * (1 - SHARE))
    magnitudes = torch.cat([d.abs().flatten() for d in sft.values()])
    of_kept = torch.cat([sft[name][mask].abs() for name, mask in kept.items()])
    assert float(of_kept.mean()) == pytest.approx(float(magnitudes.mean()), rel=0.2), "whatever their size"


def test_draws_follow_the_seed_and_are_not_those_of_dare(base, branches, tmp_path):
    fixed, same, other = (
        at_random(base, branches, tmp_path / name, seed)
        for name, seed in (("fixed", None), ("same", 42), ("other", 7))
    )
    dare = DareLinear(density=1 - SHARE, seed=42, rescale="none", weights=[1, 0])
    _, dropped = merged(base, branches, dare, tmp_path / "dare")
    assert all(torch.equal(fixed[name], same[name]) for name in fixed)
    for others in (other, dropped):
        assert not any(torch.equal(fixed[name] != 0, others[name] != 0) for name in fixed)


def test_pruned_by_magnitude_is_what_the_ties_authors_trim(base, branches, tmp_path):
    """One law, bit for bit: their scope is the whole branch, too."""
    pruned = Ties(density=1.0, prune_sft=0.7, prune_preference=0.4)
    trimmed = Ties(sft_density=0.3, preference_density=0.6, scope=Scope.all)
    for method, out in ((pruned, "pruned"), (trimmed, "trimmed")):
        merge_adapters(base, branches, method, tmp_path / out)
    one, other = weights_of(tmp_path / "pruned"), weights_of(tmp_path / "trimmed")
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("method", [m for m in merges() if not m.needs], ids=named)
def test_every_merge_takes_pruned_branches_or_says_why_not(base, branches, tmp_path, method):
    options = {"space": method.space, "prune_sft": 0.5, "prune_preference": 0.5}
    if method.space is Space.core and Space.delta in method.spaces:
        with pytest.raises(ValueError, match="a pruned delta has none"):
            type(method)(**options)
        return
    if method.name == "model_stock":
        with pytest.raises(ValueError, match="merge=model_stock"):
            merge_adapters(base, branches, type(method)(**options), tmp_path / "out")
        return
    report, found = merged(base, branches, type(method)(**options), tmp_path / "out")
    assert all(d.isfinite().all() and d.any() for d in found.values())
    assert 0 < report["shared"] < 0.5, "half of each stays"


# --- at the size of the preference delta ---------------------------------------------------------------


def test_the_sft_delta_comes_to_the_preference_deltas_norm_and_that_one_stays(base, branches, tmp_path):
    sft, preference = (deltas(folder) for folder in branches.values())
    kept = largest(sft, SHARE)
    factor = norm(preference) / norm(kept)
    method = TaskArithmetic(prune_sft=SHARE, norm=Norm.preference)
    report, found = merged(base, branches, method, tmp_path / "out")

    assert report["norm"] == pytest.approx(norm(preference), rel=1e-6)
    assert abs(factor - 1) > 0.02
    assert_close(found, {name: factor * kept[name] + preference[name] for name in sft})


def test_at_the_preference_norm_no_size_of_the_sft_delta_matters(base, branches, tmp_path):
    tripled = save_adapter(base, tmp_path / "tripled", 1, lora_alpha=12)
    method = TaskArithmetic(norm=Norm.preference)
    _, one = merged(base, branches, method, tmp_path / "one")
    _, other = merged(base, branches | {"sft": tripled}, method, tmp_path / "other")
    assert_close(other, one)


# --- measured of two deltas ------------------------------------------------------------------------------


def test_what_both_deltas_change_and_where_they_disagree(base, branches, tmp_path):
    sft, preference = (deltas(folder) for folder in branches.values())
    a = torch.cat([d.flatten() for d in largest(sft, 0.5).values()])
    b = torch.cat([d.flatten() for d in largest(preference, 0.8).values()])
    method = TaskArithmetic(prune_sft=0.5, prune_preference=0.8, overlap=True)
    report, _ = merged(base, branches, method, tmp_path / "out")

    both = (a != 0) & (b != 0)
    assert report["shared"] == pytest.approx(float(both.float().mean()), rel=1e-6)
    assert report["conflict_of_shared"] == pytest.approx(float((a * b < 0)[both].float().mean()), rel=1e-6)
    pairs = zip(largest(sft, 0.5).values(), largest(preference, 0.8).values(), strict=True)
    expected = [cosine_of_grams(x.double().numpy(), y.double().numpy()) for x, y in pairs]
    assert report["overlap"] == pytest.approx(np.mean(expected), rel=1e-4)


def cosine_of_grams(x: np.ndarray, y: np.ndarray) -> float:
    g, h = x.T @ x, y.T @ y
    return float((g * h).sum() / np.linalg.norm(g) / np.linalg.norm(h))


def random_factors(seed: int, rank: int = 3, shape: tuple[int, int] = (20, 30)) -> Factors:
    draw = np.random.default_rng(seed).standard_normal
    A, B = draw((rank, shape[1])), draw((shape[0], rank))
    return Factors(A.astype(np.float32), B.astype(np.float32), 0.5)


@pytest.mark.parametrize("shape", [(20, 30), (30, 20)])
def test_overlap_is_the_same_of_factors_and_of_the_dense_delta(shape):
    a, b = random_factors(1, 3, shape), random_factors(2, 5, shape)
    expected = cosine_of_grams(a[:].astype(np.float64), b[:].astype(np.float64))
    for pair in ((a, b), (Dense(a[:]), b), (Dense(a[:]), Dense(b[:]))):
        assert overlap(*pair) == pytest.approx(expected, rel=1e-5)


def test_overlap_is_one_of_alike_zero_of_orthogonal_and_none_of_a_zero_delta():
    a = random_factors(1)
    assert overlap(a, Factors(a.A, a.B, -7.0)) == pytest.approx(1)
    apart = (
        Factors(np.eye(30, dtype=np.float32)[:3], a.B, 1.0),
        Factors(np.eye(30, dtype=np.float32)[3:6], a.B, 1),
    )
    assert overlap(*apart) == pytest.approx(0)
    assert overlap(a, Factors(0 * a.A, a.B, 1.0)) is None


# --- in a run -----------------------------------------------------------------------------------------------


def test_a_branch_alone_is_pruned_too_and_no_other_baseline_is(compose: Callable[..., RunConfig]):
    words = ("experiment=smoke", "merge=task_arithmetic")
    keys = {}
    for paradigm in ("sft", "preference", "sequential", "joint", "parallel"):
        each = [(), ("merge.prune_sft=0.9",), ("merge.prune_sft=0.9", "merge.prune_by=random")]
        keys[paradigm] = [build(compose(*words, f"paradigm={paradigm}", *more)).key for more in each]
    assert len(set(keys["sft"])) == len(set(keys["parallel"])) == 3
    assert all(len(set(keys[name])) == 1 for name in ("preference", "sequential", "joint"))


def test_a_seed_that_draws_nothing_is_in_no_key(compose: Callable[..., RunConfig]):
    words = ("experiment=smoke", "merge=ties", "merge.prune_seed=3")
    plain = build(compose(*words[:2]))
    assert build(compose(*words)).key == build(compose(*words, "merge.prune_by=random")).key == plain.key
    by_size = "merge.prune_sft=0.5"
    assert build(compose(*words, by_size)).key == build(compose(*words[:2], by_size)).key != plain.key
    drawn = [
        build(compose(*words[:2], by_size, "merge.prune_by=random", f"merge.prune_seed={n}")) for n in (3, 42)
    ]
    assert len({stage.key for stage in drawn}) == 2


def test_what_cannot_be_pruned_is_refused_by_name(tmp_path, base):
    with pytest.raises(ValueError, match=r"merge.prune_sft must be at least 0 and below 1, got 1"):
        TaskArithmetic(prune_sft=1.0)
    with pytest.raises(ValueError, match=r"merge\.output=adapter needs merge\.rank"):
        TaskArithmetic(prune_preference=0.5, output=MergeOutput.adapter)
    with pytest.raises(ValueError, match="merge=learned learns its coefficients with whole deltas"):
        Learned(prune_sft=0.5)
    models = {
        name: save_tuned(base, tmp_path / name, seed) for seed, name in enumerate(("sft", "preference"))
    }
    report = merge_adapters(base, models, TaskArithmetic(prune_sft=SHARE), tmp_path / "out")
    assert report["shared"] == pytest.approx(1 - SHARE, abs=0.001), "whole models, too"
