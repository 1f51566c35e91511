"""Merging in other spaces than the weights' own, and the methods of singular vectors, against whole weights."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from paft.config import Combine, MergeConfig, Normalize, Scope, Space
from paft.delta.delta import Dense, Factors
from paft.delta.rows import Array
from paft.merge.methods import DareTies, Iso, Linear, Ram, RamPlus, Slerp, TaskArithmetic, Ties, Tsv, Wudi
from paft.merge.space import core_space, knots_space, merge_tensor

Wide = NDArray[np.float64]
CLOSE = {"rtol": 0, "atol": 1e-6}
"""Of deltas of magnitude 1: float32 products of float64 factors."""


def factors(rank: int, seed: int, out: int = 24, width: int = 36) -> Factors:
    generator = np.random.default_rng(seed)
    A, B = generator.standard_normal((rank, width)), generator.standard_normal((out, rank))
    return Factors(A.astype(np.float32), B.astype(np.float32) / 6, 0.5)


def whole(delta: Factors) -> Wide:
    return delta[:].astype(np.float64)


PAIR = [factors(4, 0), factors(7, 1)]


@pytest.mark.parametrize("space", [core_space, knots_space])
@pytest.mark.parametrize("ranks", [(4, 7), (1, 1), (0, 5), (20, 20)])
def test_spaces_keep_every_delta(space: Any, ranks: tuple[int, int]) -> None:
    pair = [factors(rank, seed) for seed, rank in enumerate(ranks)]
    cores = space(pair)
    for delta, middle in zip(pair, cores.middles, strict=True):
        np.testing.assert_allclose(cores.delta(middle)[:], whole(delta), **CLOSE)


@pytest.mark.parametrize("space", [Space.core, Space.svd])
@pytest.mark.parametrize(
    "method",
    [Linear(), Linear(weights=[0.2, 0.9]), TaskArithmetic(weights=[1, -0.5], scale=0.7), Slerp(t=0.3)],
)
def test_linear_merges_are_the_same_in_every_space(method: MergeConfig, space: Space) -> None:
    """A space is a change of basis, which sums commute with; an orthonormal one keeps angles too."""
    ours = merge_tensor(replace(method, space=space), PAIR)
    np.testing.assert_allclose(ours, merge_tensor(method, PAIR), **CLOSE)


def test_ties_in_core_space_is_ties_of_the_core_matrices() -> None:
    """Section 3 of 2509.17786, in torch: reference bases by SVD of the stacked factors, TIES on U^T B A V."""
    As, Bs = ([torch.from_numpy(getattr(f, x)).double() for f in PAIR] for x in "AB")
    left = torch.linalg.svd(torch.cat([0.5 * B for B in Bs], 1), full_matrices=False)[0]
    right = torch.linalg.svd(torch.cat(As, 0), full_matrices=False)[2]
    cores = [(left.T @ (0.5 * B) @ A @ right.T).float().numpy() for A, B in zip(As, Bs, strict=True)]
    method = Ties(density=0.3)
    expected = left.numpy() @ merge_tensor(method, cores).astype(np.float64) @ right.numpy()
    np.testing.assert_allclose(merge_tensor(replace(method, space=Space.core), PAIR), expected, **CLOSE)


def test_ties_in_svd_space_against_whole_knots() -> None:
    """Section 4 of 2410.19735 on the whole deltas side by side."""
    left, sizes, right = np.linalg.svd(np.concatenate([whole(d) for d in PAIR], 1), full_matrices=False)
    kept = sizes > 1e-5
    scaled = (sizes[:, None] * right)[kept]
    parts = [part.astype(np.float32) for part in np.split(scaled, 2, axis=1)]
    method = Ties(density=0.3)
    expected = left[:, kept] @ merge_tensor(method, parts).astype(np.float64)
    np.testing.assert_allclose(merge_tensor(replace(method, space=Space.svd), PAIR), expected, **CLOSE)


def test_dare_in_core_space_draws_a_mask_of_the_core_matrix() -> None:
    merged = merge_tensor(DareTies(density=0.5, space=Space.core), PAIR)
    assert np.linalg.matrix_rank(merged, tol=1e-4) <= 11
    assert not np.allclose(merged, merge_tensor(DareTies(density=0.5), PAIR), atol=1e-3)


def test_core_space_refuses_a_delta_of_full_rank_by_name() -> None:
    with pytest.raises(
        ValueError, match=r"factors of LoRA deltas: a branch changes weight otherwise .*merge.space=delta"
    ):
        merge_tensor(Linear(space=Space.core), [PAIR[0], Dense(whole(PAIR[1]).astype(np.float32))])


def test_spaces_that_a_method_cannot_merge_in_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"merge\.space must be delta or core or svd for merge=ties, got 'full'"
    ):
        Ties(space=Space.full)
    with pytest.raises(ValueError, match=r"merge\.space must be core for merge=tsv, got 'delta'"):
        Tsv(space=Space.delta)
    with pytest.raises(ValueError, match=r"merge.scope=global .* got merge.space='core'"):
        Ties(scope=Scope.all, space=Space.core)


# --- methods of singular vectors ------------------------------------------------------------------------------------


def wudi_loss(merged: Wide) -> float:
    """Of the paper, on whole weights."""
    return sum(
        float(np.square((merged - whole(d)) @ whole(d).T).sum() / np.square(whole(d)).sum()) for d in PAIR
    )


def test_wudi_reaches_the_optimum_of_its_paper() -> None:
    """Gradient steps from the plain sum, as the paper takes them, come near and not below."""
    merged = merge_tensor(Wudi(), PAIR).astype(np.float64)
    start = sum(map(whole, PAIR))
    t = torch.from_numpy(start).clone().requires_grad_()
    optimizer = torch.optim.Adam([t], lr=0.02)
    deltas = [torch.from_numpy(whole(d)) for d in PAIR]
    for _ in range(1500):
        optimizer.zero_grad()
        loss = sum(((t - d) @ d.T).square().sum() / d.square().sum() for d in deltas)
        loss.backward()
        optimizer.step()
    assert wudi_loss(merged) < 1e-9  # 11 directions of 36: both branches can be left undisturbed
    assert wudi_loss(start) > 1e3 * loss.item() > 1e3 * wudi_loss(merged)


def test_wudi_where_row_spaces_overlap_is_a_stationary_point() -> None:
    shared = factors(6, 2, width=8)
    pair = [shared, Factors(shared.A[:5], factors(5, 3, width=8).B, 0.5)]
    t = torch.from_numpy(merge_tensor(Wudi(), pair).astype(np.float64)).requires_grad_()
    deltas = [torch.from_numpy(whole(d)) for d in pair]
    loss = sum(((t - d) @ d.T).square().sum() / d.square().sum() for d in deltas)
    (gradient,) = torch.autograd.grad(loss, t)
    assert float(loss) > 1e-3  # they contradict each other
    assert float(gradient.norm()) < 1e-4 * float(sum(d.norm() for d in deltas))


def tsv_of_whole(deltas: list[Wide], top: list[int]) -> Wide:
    """Algorithm 1 of 2412.00081 on whole weights, with so many singular triplets of each."""
    lefts, sizes, rights = zip(*(np.linalg.svd(d, full_matrices=False) for d in deltas), strict=True)
    left = np.concatenate([u[:, :k] for u, k in zip(lefts, top, strict=True)], 1)
    right = np.concatenate([v[:k] for v, k in zip(rights, top, strict=True)], 0)
    size = np.concatenate([s[:k] for s, k in zip(sizes, top, strict=True)])
    u1, _, u2 = np.linalg.svd(left, full_matrices=False)
    v1, _, v2 = np.linalg.svd(right, full_matrices=False)
    merged: Wide = (u1 @ u2) * size @ (v1 @ v2)
    return merged


@pytest.mark.parametrize("top", [None, 3])
def test_tsv_against_whole_weights(top: int | None) -> None:
    expected = tsv_of_whole([*map(whole, PAIR)], [4, 7] if top is None else [3, 3])
    np.testing.assert_allclose(merge_tensor(Tsv(top=top), PAIR), expected, **CLOSE)


def test_iso_has_one_singular_value_and_the_sum_of_the_plain_sum() -> None:
    merged = np.linalg.svd(merge_tensor(Iso(), PAIR).astype(np.float64), compute_uv=False)
    plain = np.linalg.svd(sum(map(whole, PAIR)), compute_uv=False)
    np.testing.assert_allclose(merged[:11], plain[:11].mean(), rtol=1e-5)
    assert merged[11:].max() < 1e-5


@pytest.mark.parametrize("method", [Wudi(), Tsv(), Iso()])
def test_methods_of_singular_vectors_take_an_unadapted_layer(method: MergeConfig) -> None:
    lone = merge_tensor(method, [factors(0, 0), PAIR[1]])
    assert np.isfinite(lone).all()
    if not isinstance(method, Iso):
        np.testing.assert_allclose(lone, whole(PAIR[1]), **CLOSE)
    assert not merge_tensor(method, [factors(0, 0), factors(0, 1)]).any()


@pytest.mark.parametrize("method", [Wudi, Tsv, Iso, Ram])
def test_weights_and_scale_multiply_deltas_and_result(method: Any) -> None:
    twice = [replace(PAIR[0], scaling=1.0), replace(PAIR[1], scaling=0.25)]
    ours = merge_tensor(method(weights=[2.0, 0.5]), PAIR)
    np.testing.assert_allclose(ours, merge_tensor(method(), twice), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        merge_tensor(method(scale=-0.5), PAIR), -0.5 * merge_tensor(method(), PAIR), rtol=1e-6
    )


def test_weights_by_name_are_the_method_with_those_weights() -> None:
    method = Ties(density=0.5, weights=[1, 1], weights_by={"q_proj": [0.25, 1.0], "layers.0": [0.0, 2.0]})
    for name, weights in (
        ("model.layers.0.q_proj.weight", [0.25, 1.0]),
        ("model.layers.0.k_proj.weight", [0.0, 2.0]),
        ("model.layers.1.k_proj.weight", [1.0, 1.0]),
    ):
        expected = merge_tensor(Ties(density=0.5, weights=weights), PAIR, name=name)
        assert np.array_equal(merge_tensor(method, PAIR, name=name), expected)


def test_wrong_weights_by_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"merge\.weights_by\.q must be two numbers.*got \[1\.0\]"):
        Linear(weights_by={"q": [1.0]})
    with pytest.raises(ValueError, match=r"merge\.weights_by must be regular expressions .* got '\('"):
        Linear(weights_by={"(": [1.0, 1.0]})


# --- by element -----------------------------------------------------------------------------------------------------


def row(*values: float) -> Array:
    return np.array([values], np.float32)


def test_ram_keeps_what_one_changes_and_averages_what_both_change() -> None:
    deltas = [row(1.0, 0.5, 0.0, 1e-6), row(0.0, -0.25, 0.5, 0.0)]
    assert merge_tensor(Ram(), deltas).tolist() == [[1.0, 0.125, 0.5, 0.0]]
    # one position of two overlaps, as many as stand alone: enlarged by 1 + 0.1 min(1, 0.2)
    assert merge_tensor(RamPlus(), deltas)[0].tolist() == pytest.approx([1.02, 0.125, 0.51, 0.0])


def test_ties_combines_by_mean_sum_or_largest() -> None:
    deltas = [row(0.5, -0.25, 0.25), row(0.25, 0.5, -0.25)]
    of = {how: merge_tensor(Ties(density=1, combine=how), deltas)[0].tolist() for how in Combine}
    assert of == {
        Combine.mean: [0.375, 0.5, 0.25],
        Combine.sum: [0.75, 0.5, 0.25],
        Combine.max: [0.5, 0.5, 0.25],
    }
    assert Ties(combine=Combine.sum) == Ties(normalize=Normalize.none)
