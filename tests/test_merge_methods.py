"""Laws that every way of merging deltas must keep."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from whole_weights import slerp_full

from paft.delta.delta import Factors
from paft.delta.rows import Array
from paft.merge.method import gram_of_deltas
from paft.merge.methods import dare_linear, dare_ties, linear, task_arithmetic, ties
from paft.merge.slerp import delta_arc, full_arc, gram_of, slerp

SUMS: dict[str, Callable[..., Array]] = {
    "linear": linear,
    "task_arithmetic": task_arithmetic,
    "ties": partial(ties, density=1.0),
    "dare_ties": partial(dare_ties, density=1.0),
    "dare_linear": partial(dare_linear, density=1.0),
}


def random_deltas(count: int, seed: int = 0) -> list[Array]:
    generator = np.random.default_rng(seed)
    return [generator.standard_normal((8, 12), np.float32) * np.float32(0.01) for _ in range(count)]


def generators(count: int) -> list[np.random.RandomState]:
    return [np.random.RandomState(seed) for seed in range(count)]


def assert_close(actual: Array, expected: Array) -> None:
    """To a few last places of float32."""
    np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=1e-8)


def row(*values: float) -> Array:
    return np.array([values], np.float32)


@pytest.mark.parametrize("name", SUMS)
def test_one_delta_at_weight_1_and_density_1_comes_back(name: str) -> None:
    (delta,) = random_deltas(1)
    assert np.array_equal(SUMS[name]([delta], [1.0]), delta)


@pytest.mark.parametrize("name", SUMS)
def test_a_delta_of_weight_0_does_not_count(name: str) -> None:
    first, second = random_deltas(2)
    assert np.array_equal(SUMS[name]([first, second], [1.0, 0.0]), first)


@pytest.mark.parametrize("name", SUMS)
def test_order_of_three_deltas_does_not_matter(name: str) -> None:
    deltas, weights = random_deltas(3), [0.5, 0.3, 0.7]
    forward = SUMS[name](deltas, weights)
    backward = SUMS[name](deltas[::-1], weights[::-1])
    assert_close(forward, backward)


def test_order_of_two_deltas_does_not_matter_to_sparse_ties_and_slerp() -> None:
    deltas, weights = random_deltas(2), [0.6, 0.3]
    swapped = ties(deltas[::-1], weights[::-1], density=[0.2, 0.5])
    assert np.array_equal(ties(deltas, weights, density=[0.5, 0.2]), swapped)
    assert_close(slerp(deltas, 0.3), slerp(deltas[::-1], 0.7))


@pytest.mark.parametrize("factor", [0.25, 8.0])
@pytest.mark.parametrize("name", [*SUMS, "slerp", "sparse_ties"])
def test_scaling_the_deltas_scales_the_result(name: str, factor: float) -> None:
    merge = SUMS | {"slerp": lambda deltas, _: slerp(deltas, 0.3), "sparse_ties": partial(ties, density=0.3)}
    deltas, weights = random_deltas(2), [0.6, 0.3]
    scaled = merge[name]([factor * delta for delta in deltas], weights)
    assert_close(scaled, factor * merge[name](deltas, weights))


@pytest.mark.parametrize("name", SUMS)
def test_scale_multiplies_the_merged_delta(name: str) -> None:
    deltas, weights = random_deltas(2), [0.6, 0.3]
    assert np.array_equal(SUMS[name](deltas, weights, scale=0.0), np.zeros((8, 12)))
    assert np.array_equal(SUMS[name](deltas, weights, scale=-0.5), -0.5 * SUMS[name](deltas, weights))


def test_ties_of_agreeing_signs_is_the_weighted_mean() -> None:
    deltas, weights = [np.abs(delta) for delta in random_deltas(2)], [0.7, 0.2]
    assert_close(ties(deltas, weights, density=1.0), linear(deltas, weights))


def test_ties_of_two_branches_keeps_the_larger_where_signs_differ() -> None:
    deltas = [row(0.5, -0.25, 0.5), row(-0.25, 0.5, 0.5)]
    assert ties(deltas, [1, 1], density=1)[0].tolist() == [0.5, 0.5, 0.5]
    assert ties(deltas, [0.25, 1], density=1)[0].tolist() == [-0.25, 0.5, 0.5]
    assert ties(deltas, [0.25, 1], density=1, elect_on="unweighted")[0].tolist() == [0.5, 0.5, 0.5]


def test_a_zero_tally_elects_plus_and_a_zero_never_agrees() -> None:
    deltas = [row(0.25, -0.5, 0.0), row(-0.25, 0.0, 0.0)]
    assert ties(deltas, [1, 1], density=1)[0].tolist() == [0.25, -0.5, 0.0]


def test_count_election_of_two_branches_prefers_plus() -> None:
    deltas = [row(0.25, -1.0), row(-1.0, 0.25)]
    assert ties(deltas, [1, 1], density=1, election="count")[0].tolist() == [0.25, 0.25]


def test_ties_divides_by_weights_count_or_nothing() -> None:
    deltas = [row(1.0), row(0.5)]
    results = {
        how: ties(deltas, [0.5, 1.0], density=1, normalize=how).item() for how in ("weights", "count", "none")
    }
    assert results == pytest.approx({"weights": 2 / 3, "count": 0.5, "none": 1.0})


def test_dare_inverse_density_is_unbiased() -> None:
    (delta,) = random_deltas(1)
    generator, draws = np.random.RandomState(1), 2000
    option = {"density": 0.3, "generators": [generator], "rescale": "inverse_density"}
    mean = np.stack([dare_linear([delta], [1.0], **option) for _ in range(draws)]).mean(0)
    standard_error = np.abs(delta) * math.sqrt((1 / 0.3 - 1) / draws)
    # 96 positions: one beyond 4 standard errors has probability 0.6 %; the mean over all must be within 3
    assert (np.abs(mean - delta) <= 4 * standard_error).all()
    assert np.abs((mean - delta).sum()) <= 3 * np.sqrt(np.square(standard_error).sum())


def test_dare_is_decided_by_its_generators_alone() -> None:
    deltas, weights = random_deltas(2), [0.6, 0.4]
    np.random.seed(0)
    first = dare_ties(deltas, weights, density=0.5, generators=generators(2))
    np.random.seed(1)
    assert np.array_equal(first, dare_ties(deltas, weights, density=0.5, generators=generators(2)))
    assert not np.array_equal(first, dare_ties(deltas, weights, density=0.5, generators=generators(3)[1:]))


def test_dare_without_generator_or_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="one generator or mask per delta"):
        dare_linear(random_deltas(2), [1, 1], density=0.5)


@pytest.mark.parametrize(("t", "end"), [(0.0, 0), (1.0, 1)])
def test_slerp_ends_at_the_deltas(t: float, end: int) -> None:
    deltas, base = random_deltas(2), random_deltas(1, seed=9)[0]
    assert np.array_equal(slerp(deltas, t), deltas[end])
    assert_close(slerp_full(base, deltas, t), deltas[end])


def test_slerp_of_equal_norms_keeps_the_norm() -> None:
    deltas = [delta / np.linalg.norm(delta) for delta in random_deltas(2)]
    for t in (0.1, 0.5, 0.8):
        assert np.linalg.norm(slerp(deltas, t)) == pytest.approx(1)


def test_slerp_along_one_direction_is_linear() -> None:
    (delta,) = random_deltas(1)
    for other in (delta, 3 * delta, -delta):
        assert delta_arc(gram_of(delta, other), 0.25).linear
        assert_close(slerp([delta, other], 0.25), 0.75 * delta + 0.25 * other)


def test_slerp_with_a_zero_delta_counts_a_right_angle() -> None:
    (delta,) = random_deltas(1)
    assert_close(slerp([delta, np.zeros_like(delta)], 0.5), math.sqrt(0.5) * delta)


def test_full_space_is_linear_for_small_deltas_only() -> None:
    base, (first, second) = 10 * random_deltas(1, seed=9)[0], random_deltas(2)
    assert full_arc(gram_of(base + 0.1 * first, base + 0.1 * second), 0.5).linear
    assert not full_arc(gram_of(base + first, base + second), 0.5).linear
    assert not delta_arc(gram_of(first, second), 0.5).linear


def test_gram_of_deltas_against_dense_deltas() -> None:
    generator = np.random.default_rng(0)
    factors = [
        Factors(*(generator.standard_normal(size, np.float32) for size in [(rank, 300), (200, rank)]), 0.7)
        for rank in (16, 5)
    ]
    dense = [delta[:].astype(np.float64) for delta in factors]
    expected = [(dense[i] * dense[j]).sum() for i, j in ((0, 0), (1, 1), (0, 1))]
    # the dense deltas are rounded to float32
    np.testing.assert_allclose(gram_of_deltas(*factors), expected, rtol=1e-5)
    expected_cosine = expected[2] / math.sqrt(expected[0] * expected[1])
    assert gram_of_deltas(*factors).cosine == pytest.approx(expected_cosine, abs=1e-7)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: linear(d, [1, -1]), "must not sum to 0"),
        (lambda d: linear(d, [1]), "one number per delta"),
        (lambda d: linear([], []), "one or more matrices"),
        (lambda d: linear([d[0], d[1].T], [1, 1]), r"got shapes \[\[8, 12\], \[12, 8\]\]"),
        (lambda d: slerp(d[:1], 0.5), "exactly two"),
        (lambda d: ties(d, [1, 1], density=[0.5]), "one per delta"),
        (lambda d: ties(d, [1, 1], density=1.5), r"in \(0, 1\], got 1.5"),
        (lambda d: ties(d, [1, 1], density=1, election="mas"), r"one of \['mass', 'count'\], got 'mas'"),
    ],
)
def test_wrong_arguments_are_named(call: Callable[[list[Array]], Array], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(random_deltas(2))
