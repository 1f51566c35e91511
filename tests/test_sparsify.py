"""What is dropped, exactly: counts, thresholds, norms, and which seed decides."""

import numpy as np
import pytest
import torch

from paft.config import Rescale
from paft.delta.rows import Array, blocks_of
from paft.merge import sparsify
from paft.merge.methods import magnitude
from paft.merge.sparsify import bernoulli_mask, largest, magnitude_threshold, random, tensor_generator, trim

ALL = slice(None)


def random_delta(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32) * np.float32(1e-3)


def in_blocks(keep: sparsify.Sparsifier, delta: Array) -> Array:
    return np.concatenate([keep(rows, block) for rows, (block,) in blocks_of(delta)])


@pytest.mark.parametrize("density", [0.01, 0.29, 0.5, 0.999, 1.0])
def test_magnitude_keeps_exactly_the_largest(density: float) -> None:
    delta = random_delta(20, 50)
    kept = magnitude(delta, density)
    k = int(density * delta.size)
    assert np.count_nonzero(kept) == k
    assert np.array_equal(np.sort(np.abs(kept.ravel()))[-k:], np.sort(np.abs(delta.ravel()))[-k:])
    assert np.array_equal(kept[kept != 0], delta[kept != 0])


def by_stable_sort(delta: Array, k: int) -> Array:
    order = np.argsort(-np.abs(delta).ravel(), kind="stable")
    mask = np.zeros(delta.size, np.bool_)
    mask[order[:k]] = True
    return np.where(mask.reshape(delta.shape), delta, 0)


def test_magnitude_against_a_stable_sort_where_values_tie() -> None:
    delta = np.round(random_delta(30, 40) * 2000) / 4
    assert np.array_equal(magnitude(delta, 500 / 1200), by_stable_sort(delta, 500))


@pytest.mark.parametrize("density", [1e-5, 0.003, 0.1, 0.5, 0.97, 0.99999])
@pytest.mark.parametrize("decimals", [9, 4])
def test_magnitude_in_blocks_against_a_stable_sort(density: float, decimals: int) -> None:
    """All values distinct, and rounded so that thousands equal the threshold."""
    delta = np.round(random_delta(500, 700) * np.arange(1, 701, dtype=np.float32) / 100, decimals)
    kept = in_blocks(largest(delta, density), delta)
    assert np.array_equal(kept, by_stable_sort(delta, int(density * delta.size)))


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_magnitude_of_a_delta_with_fewer_values_than_are_kept(share: float) -> None:
    delta = random_delta(500, 700)
    delta[round(share * 500) :] = 0
    assert np.array_equal(magnitude(delta, 0.4), delta)


def test_magnitude_reads_a_transposed_delta_in_its_own_order() -> None:
    ones = np.ones((4, 6), np.float32).T
    assert np.array_equal(magnitude(ones, 0.5), np.repeat([1, 0], 12).reshape(6, 4))


def test_magnitude_keeps_at_least_one_value() -> None:
    delta = np.float32([[1, -3, 2], [0, 1, 2]])
    assert np.array_equal(magnitude(delta, 0.1), np.float32([[0, -3, 0], [0, 0, 0]]))


@pytest.mark.parametrize("density", [0.0, -0.5, 1.5])
def test_density_out_of_range_is_refused(density: float) -> None:
    with pytest.raises(ValueError, match=r"density must be in \(0, 1\]"):
        magnitude(np.ones((2, 3), np.float32), density)


@pytest.mark.parametrize("density", [0.001, 0.2, 0.5, 0.9])
def test_global_threshold_against_a_sort_of_everything(density: float) -> None:
    tensors = [random_delta(30, 40), 10 * random_delta(7, 11, seed=1), np.zeros((5, 5), np.float32)]
    everything = np.sort(np.concatenate([np.abs(tensor).ravel() for tensor in tensors]))[::-1]
    threshold = magnitude_threshold(lambda: iter(tensors), density)
    assert threshold == everything[int(len(everything) * density)]


def test_global_scope_keeps_more_of_the_larger_tensor() -> None:
    tensors = [random_delta(30, 40), 10 * random_delta(30, 40, seed=1)]
    threshold = magnitude_threshold(lambda: tensors, 0.5)
    counts = [np.count_nonzero(trim(tensor, threshold)) for tensor in tensors]
    assert sum(counts) == 1201
    assert counts[1] > 2 * counts[0]


def test_density_1_trims_nothing() -> None:
    delta = random_delta(30, 40)
    assert np.array_equal(trim(delta, magnitude_threshold(lambda: [delta], 1.0)), delta)


def test_rescale_restores_the_l1_norm_of_this_draw() -> None:
    delta = random_delta(20, 50)
    mask = bernoulli_mask(delta.shape, 0.3, np.random.RandomState(0))
    restored = random(delta, 0.3, mask, Rescale.l1)(ALL, delta)
    assert np.abs(restored).sum() == pytest.approx(np.abs(delta).sum())
    assert np.array_equal(restored != 0, mask)
    dropped = np.where(mask, delta, 0)
    inverse = random(delta, 0.3, mask, Rescale.inverse_density)(ALL, delta)
    assert np.array_equal(inverse, dropped / np.float32(0.3))
    assert np.array_equal(random(delta, 0.3, mask, Rescale.none)(ALL, delta), dropped)


def test_rescale_is_the_same_in_blocks() -> None:
    delta = random_delta(500, 700)
    mask = bernoulli_mask(delta.shape, 0.3, np.random.RandomState(0))
    keep = random(delta, 0.3, mask, Rescale.l1)
    assert np.array_equal(in_blocks(keep, delta), keep(ALL, delta))


def test_rescale_leaves_an_empty_draw_alone() -> None:
    ones, nothing = np.ones((1, 3), np.float32), np.zeros((1, 3), np.bool_)
    assert np.array_equal(random(ones, 0.1, nothing, Rescale.l1)(ALL, ones), nothing)


@pytest.mark.parametrize("density", [0.1, 0.3, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("shape", [(3, 5), (300, 1000)])
def test_bernoulli_mask_against_torch(density: float, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(2**40 + 17)
    theirs = torch.bernoulli(torch.full(shape, density), generator=generator).bool().numpy()
    # torch's Mersenne twister, too, takes the low 32 bits of its seed
    assert np.array_equal(bernoulli_mask(shape, density, np.random.RandomState(17)), theirs)


def test_generator_depends_on_seed_branch_and_name_only() -> None:
    def draw(seed: int, branch: str, name: str) -> list[float]:
        return tensor_generator(seed, branch, name).rand(4).tolist()

    first = draw(42, "sft", "a.weight")
    np.random.rand(3)
    assert draw(42, "sft", "a.weight") == first
    others = [draw(43, "sft", "a.weight"), draw(42, "preference", "a.weight"), draw(42, "sft", "b.weight")]
    assert first not in others
