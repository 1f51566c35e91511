"""Deltas without factors, as full fine-tuning has them, in the methods and the space of singular vectors: held to the
authors' formulas on whole matrices, in torch."""

import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from full_models import save_adapter, save_base, weights_of
from torch import Tensor

from paft.config import MergeConfig, Space
from paft.delta.adapter import NAMES_OF_BASE
from paft.delta.adapter import read_adapter as read_stored
from paft.delta.delta import Delta, Dense, Factors
from paft.delta.full import save_full_delta
from paft.delta.rows import Array
from paft.merge.apply import merge_adapters, plan_merge
from paft.merge.methods import DareTies, Iso, Linear, Slerp, TaskArithmetic, Ties, Tsv, Wudi
from paft.merge.space import merge_tensor

SHAPES = {"wide": (12, 60), "square": (24, 24), "tall": (60, 12), "twice": (16, 40)}
CLOSE = {"rtol": 0, "atol": 3e-6}
"""Singular vectors of float32 matrices with values of about 1; measured up to 1e-6."""
SINGULAR = [Tsv(), Iso(), Wudi()]


def dense(shape: tuple[int, int], seed: int) -> Dense:
    return Dense(np.random.default_rng(seed).standard_normal(shape).astype(np.float32) / 4)


def low_rank(shape: tuple[int, int], seed: int, rank: int = 3) -> Factors:
    generator = np.random.default_rng(seed)
    A, B = generator.standard_normal((rank, shape[1])), generator.standard_normal((shape[0], rank))
    return Factors(A.astype(np.float32), B.astype(np.float32) / 6, 0.5)


def pair(shape: tuple[int, int], kind: str) -> list[Delta]:
    make: dict[str, Callable[..., Delta]] = {"full": dense, "lora": low_rank}
    return [make[name](shape, seed) for seed, name in enumerate(kind.split("+"))]


def wide(deltas: Sequence[Delta]) -> list[Tensor]:
    return [torch.from_numpy(delta[:]).double() for delta in deltas]


def tsv_m(deltas: Sequence[Tensor], ranks: Sequence[int]) -> Tensor:
    """`compute_and_sum_svd_mem_reduction` of task_singular_vectors: of T deltas the first 1/T of the triplets each, of
    one of lower rank those that it has."""
    share = min(deltas[0].shape) // len(deltas)
    lefts, sizes, rights = [], [], []
    for delta, rank in zip(deltas, ranks, strict=True):
        u, s, vh = torch.linalg.svd(delta, full_matrices=False)
        k = min(share, rank)
        lefts, sizes, rights = [*lefts, u[:, :k]], [*sizes, s[:k]], [*rights, vh[:k]]
    u_u, _, v_u = torch.linalg.svd(torch.cat(lefts, 1), full_matrices=False)
    u_v, _, v_v = torch.linalg.svd(torch.cat(rights, 0), full_matrices=False)
    merged: Tensor = torch.linalg.multi_dot((u_u, v_u, torch.diag(torch.cat(sizes)), u_v, v_v))
    return merged


def iso_c(deltas: Sequence[Tensor]) -> Tensor:
    """`iso_c` of iso-merging."""
    u, s, vh = torch.linalg.svd(sum(deltas[1:], deltas[0]), full_matrices=False)
    return u @ torch.diag(torch.ones_like(s) * s.mean()) @ vh


def wudi_fit(deltas: Sequence[Tensor]) -> Tensor:
    """The t of least norm that minimises the paper's sum_i |(t - d_i) d_i^T|^2 / |d_i|^2, by torch's least squares.

    What a low-rank delta has in other directions is the rounding of float32, 6e-8 of its largest singular value.
    """
    rows = torch.cat([d / d.norm() for d in deltas])
    wanted = torch.cat([d @ d.T / d.norm() for d in deltas])
    return torch.linalg.lstsq(rows, wanted, rcond=1e-6, driver="gelsd").solution.T


def knots_ties(deltas: Sequence[Tensor], method: MergeConfig) -> Tensor:
    """Section 4 of 2410.19735 on the whole deltas side by side."""
    u, s, vh = torch.linalg.svd(torch.cat(list(deltas), 1), full_matrices=False)
    kept = s > 1e-5
    parts = (s[kept, None] * vh[kept]).chunk(2, 1)
    merged = merge_tensor(replace(method, space=Space.delta), [part.float().numpy() for part in parts])
    return u[:, kept] @ torch.from_numpy(merged).double()


@pytest.mark.parametrize("kind", ["full+full", "full+lora", "lora+full"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_singular_vectors_of_whole_deltas_against_the_authors_formulas(shape: Any, kind: str) -> None:
    deltas = pair(shape, kind)
    ranks = [3 if isinstance(d, Factors) else min(shape) for d in deltas]
    expected = {Tsv: tsv_m(wide(deltas), ranks), Iso: iso_c(wide(deltas)), Wudi: wudi_fit(wide(deltas))}
    for method, whole in expected.items():
        ours = merge_tensor(method(), deltas)  # type: ignore[operator]
        np.testing.assert_allclose(ours, whole.numpy(), err_msg=method.__name__, **CLOSE)


@pytest.mark.parametrize("kind", ["full+full", "lora+full"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_ties_in_svd_space_against_whole_knots(shape: Any, kind: str) -> None:
    """Values next to the trimming threshold may change sides in another precision: so many are kept that none does."""
    deltas, method = pair(shape, kind), Ties(density=1.0)
    ours = merge_tensor(replace(method, space=Space.svd), deltas)
    np.testing.assert_allclose(ours, knots_ties(wide(deltas), method).numpy(), **CLOSE)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_trimming_in_svd_space_against_whole_knots(shape: Any) -> None:
    deltas, method = pair(shape, "full+full"), Ties(density=0.3)
    ours = merge_tensor(replace(method, space=Space.svd), deltas)
    np.testing.assert_allclose(ours, knots_ties(wide(deltas), method).numpy(), **CLOSE)


@pytest.mark.parametrize("method", [Linear(weights=[0.2, 0.9]), TaskArithmetic(scale=0.7), Slerp(t=0.3)])
def test_linear_merges_are_the_same_in_svd_space(method: MergeConfig) -> None:
    deltas = pair((24, 36), "full+full")
    ours = merge_tensor(replace(method, space=Space.svd), deltas)
    np.testing.assert_allclose(ours, merge_tensor(method, deltas), **CLOSE)


def test_low_rank_deltas_merge_alike_with_their_factors_and_without() -> None:
    """Iso's mean is over the directions of the space that it is in, so it is not among them."""
    factors = pair((24, 36), "lora+lora")
    whole = [Dense(delta[:]) for delta in factors]
    for method in (Tsv(), Wudi(), Ties(density=1.0, space=Space.svd), DareTies(density=1.0, space=Space.svd)):
        np.testing.assert_allclose(merge_tensor(method, whole), merge_tensor(method, factors), **CLOSE)


def test_tsv_keeps_as_many_triplets_as_are_asked_for() -> None:
    deltas = pair((24, 36), "full+full")
    ours = merge_tensor(Tsv(top=5), deltas)
    np.testing.assert_allclose(ours, tsv_m(wide(deltas), [5, 5]).numpy(), **CLOSE)
    assert np.linalg.matrix_rank(ours, tol=1e-4) == 10


@pytest.mark.parametrize("method", [Tsv(), Wudi()])
def test_a_matrix_that_one_branch_alone_changes_keeps_its_delta(method: MergeConfig) -> None:
    lone = [dense((24, 36), 0), low_rank((24, 36), 1, rank=0)]
    assert np.array_equal(merge_tensor(method, lone), lone[0][:])
    twice = replace(method, weights=[2.0, 1.0], scale=0.25)
    assert np.array_equal(merge_tensor(twice, lone), 0.5 * lone[0][:])


@pytest.mark.parametrize("method", SINGULAR)
def test_weights_and_scale_multiply_whole_deltas_and_results(method: Any) -> None:
    deltas = pair((24, 36), "full+full")
    scaled = [Dense(2 * deltas[0][:]), Dense(0.5 * deltas[1][:])]
    weighted = replace(method, weights=[2.0, 0.5])
    np.testing.assert_allclose(merge_tensor(weighted, deltas), merge_tensor(method, scaled), **CLOSE)
    half = merge_tensor(replace(method, scale=-0.5), deltas)
    np.testing.assert_allclose(half, -0.5 * merge_tensor(method, deltas), rtol=1e-6)


@pytest.mark.parametrize("method", [*SINGULAR, Ties(density=0.5, space=Space.svd)])
@pytest.mark.parametrize("rank", [0, 2])
def test_deltas_of_less_than_full_rank_give_finite_merges(method: MergeConfig, rank: int) -> None:
    """Of zeros, as a strong penalty leaves them, and of rows that are zero."""
    deltas = [Dense(low_rank((24, 36), seed, rank)[:]) for seed in (0, 1)]
    merged = merge_tensor(method, deltas)
    assert np.isfinite(merged).all() and merged.any() == (rank > 0)


# --- whole models ------------------------------------------------------------------------------------


def drawn(base: Path, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: 0.02 * torch.randn(w.shape, generator=generator) for n, w in weights_of(base).items()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    """A base with biases, two deltas of all its weights, and an adapter."""
    at = tmp_path_factory.mktemp("folders")
    base = save_base(at / "base", attention_bias=True)
    for seed, name in enumerate(("first", "second")):
        save_full_delta(drawn(base, seed), at / name)
        (at / name / "paft.json").write_text("{}")
    save_adapter(base, at / "adapter", 3)
    return base, {name: at / name for name in ("first", "second", "adapter")}


def merged(base: Path, sft: Path, preference: Path, method: MergeConfig, out: Path) -> dict[str, Array]:
    """What a merge has added to each tensor, in its own shape."""
    merge_adapters(base, {"sft": sft, "preference": preference}, method, out, same=NAMES_OF_BASE)
    before = weights_of(base)
    return {name: (after - before[name]).numpy() for name, after in weights_of(out).items()}


@pytest.mark.parametrize("method", SINGULAR)
def test_norms_and_biases_are_averaged_as_the_authors_do(
    folders: tuple[Path, dict[str, Path]], tmp_path: Path, method: MergeConfig
) -> None:
    """Of a tensor that is no matrix all three take the mean of the task vectors."""
    base, at = folders
    ours = merged(base, at["first"], at["second"], method, tmp_path / "out")
    first, second = drawn(base, 0), drawn(base, 1)
    vectors = [name for name, delta in first.items() if delta.ndim == 1]
    assert any("bias" in name for name in vectors) and any("norm" in name for name in vectors)
    for name in vectors:
        mean = (first[name] + second[name]) / 2
        np.testing.assert_allclose(ours[name], mean.numpy(), rtol=0, atol=2e-7)  # added to 1, in float32


def test_every_matrix_is_merged_as_a_whole_one(folders: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    """Embeddings and head too, as in the authors' code."""
    base, at = folders
    ours = merged(base, at["first"], at["second"], Tsv(), tmp_path / "out")
    first, second = drawn(base, 0), drawn(base, 1)
    for name in (name for name, delta in first.items() if delta.ndim == 2):
        whole = tsv_m([first[name].double(), second[name].double()], [64, 64])
        np.testing.assert_allclose(ours[name], whole.numpy(), rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("method", [Tsv(), Wudi()])
def test_beside_an_adapter_what_it_leaves_alone_keeps_the_whole_delta(
    folders: tuple[Path, dict[str, Path]], tmp_path: Path, method: MergeConfig
) -> None:
    base, at = folders
    ours = merged(base, at["first"], at["adapter"], method, tmp_path / "out")
    full, low = drawn(base, 0), read_stored(at["adapter"], base)
    for name, delta in full.items():
        if name not in low:
            np.testing.assert_allclose(ours[name], delta.numpy(), rtol=0, atol=2e-7, err_msg=name)
            continue
        deltas = [delta.double(), torch.from_numpy(low[name].load()[:]).double()]
        whole = wudi_fit(deltas) if isinstance(method, Wudi) else tsv_m(deltas, [64, 4])
        np.testing.assert_allclose(ours[name], whole.numpy(), rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("method", [*SINGULAR, Ties(density=0.5, space=Space.svd)])
def test_memory_is_that_of_single_tensors(tmp_path: Path, method: MergeConfig) -> None:
    """Of four times the layers no more: what is held beside the tensors in work are names and numbers."""
    peaks = []
    for layers in (4, 16):
        at = tmp_path / str(layers)
        sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": layers}
        base = save_base(at / "base", **sizes)
        for seed, name in enumerate(("sft", "preference")):
            save_full_delta(drawn(base, seed), at / name)
            (at / name / "paft.json").write_text("{}")
        folders = {name: at / name for name in ("sft", "preference")}
        tracemalloc.start()
        merge = plan_merge(base, folders, method, same=NAMES_OF_BASE)
        with merge.weights() as weights:
            for weight in weights.values():
                merge.delta(weight)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]
