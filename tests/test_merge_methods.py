"""Laws that every way of merging deltas must keep."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from paft.merge.methods import (
    dare_linear,
    dare_ties,
    delta_arc,
    full_arc,
    linear,
    slerp,
    slerp_full,
    task_arithmetic,
    ties,
)

SUMS: dict[str, Callable[..., Tensor]] = {
    "linear": linear,
    "task_arithmetic": task_arithmetic,
    "ties": partial(ties, density=1.0),
    "dare_ties": partial(dare_ties, density=1.0),
    "dare_linear": partial(dare_linear, density=1.0),
}


def random_deltas(count: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(8, 12, generator=generator) * 0.01 for _ in range(count)]


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


@pytest.mark.parametrize("name", SUMS)
def test_one_delta_at_weight_1_and_density_1_comes_back(name: str) -> None:
    (delta,) = random_deltas(1)
    assert torch.equal(SUMS[name]([delta], [1.0]), delta)


@pytest.mark.parametrize("name", SUMS)
def test_a_delta_of_weight_0_does_not_count(name: str) -> None:
    first, second = random_deltas(2)
    assert torch.equal(SUMS[name]([first, second], [1.0, 0.0]), first)


@pytest.mark.parametrize("name", SUMS)
def test_order_of_three_deltas_does_not_matter(name: str) -> None:
    deltas, weights = random_deltas(3), [0.5, 0.3, 0.7]
    forward = SUMS[name](deltas, weights)
    backward = SUMS[name](deltas[::-1], weights[::-1])
    torch.testing.assert_close(forward, backward)


def test_order_of_two_deltas_does_not_matter_to_sparse_ties_and_slerp() -> None:
    deltas, weights = random_deltas(2), [0.6, 0.3]
    swapped = ties(deltas[::-1], weights[::-1], density=[0.2, 0.5])
    assert torch.equal(ties(deltas, weights, density=[0.5, 0.2]), swapped)
    torch.testing.assert_close(slerp(deltas, weights), slerp(deltas[::-1], weights[::-1]))


@pytest.mark.parametrize("factor", [0.25, 8.0])
@pytest.mark.parametrize("name", [*SUMS, "slerp", "sparse_ties"])
def test_scaling_the_deltas_scales_the_result(name: str, factor: float) -> None:
    merge = SUMS | {"slerp": partial(slerp, t=0.3), "sparse_ties": partial(ties, density=0.3)}
    deltas, weights = random_deltas(2), [0.6, 0.3]
    scaled = merge[name]([factor * delta for delta in deltas], weights)
    torch.testing.assert_close(scaled, factor * merge[name](deltas, weights))


@pytest.mark.parametrize("name", SUMS)
def test_scale_multiplies_the_merged_delta(name: str) -> None:
    deltas, weights = random_deltas(2), [0.6, 0.3]
    assert torch.equal(SUMS[name](deltas, weights, scale=0.0), torch.zeros(8, 12))
    assert torch.equal(SUMS[name](deltas, weights, scale=-0.5), -0.5 * SUMS[name](deltas, weights))


def test_ties_of_agreeing_signs_is_the_weighted_mean() -> None:
    deltas, weights = [delta.abs() for delta in random_deltas(2)], [0.7, 0.2]
    torch.testing.assert_close(ties(deltas, weights, density=1.0), linear(deltas, weights))


def test_ties_of_two_branches_keeps_the_larger_where_signs_differ() -> None:
    deltas = [torch.tensor([0.5, -0.25, 0.5]), torch.tensor([-0.25, 0.5, 0.5])]
    assert ties(deltas, [1, 1], density=1).tolist() == [0.5, 0.5, 0.5]
    assert ties(deltas, [0.25, 1], density=1).tolist() == [-0.25, 0.5, 0.5]
    assert ties(deltas, [0.25, 1], density=1, elect_on="unweighted").tolist() == [0.5, 0.5, 0.5]


def test_a_zero_tally_elects_plus_and_a_zero_never_agrees() -> None:
    deltas = [torch.tensor([0.25, -0.5, 0.0]), torch.tensor([-0.25, 0.0, 0.0])]
    assert ties(deltas, [1, 1], density=1).tolist() == [0.25, -0.5, 0.0]


def test_count_election_of_two_branches_prefers_plus() -> None:
    deltas = [torch.tensor([0.25, -1.0]), torch.tensor([-1.0, 0.25])]
    assert ties(deltas, [1, 1], density=1, election="count").tolist() == [0.25, 0.25]


def test_ties_divides_by_weights_count_or_nothing() -> None:
    deltas = [torch.tensor([1.0]), torch.tensor([0.5])]
    results = {
        how: ties(deltas, [0.5, 1.0], density=1, normalize=how).item() for how in ("weights", "count", "none")
    }
    assert results == pytest.approx({"weights": 2 / 3, "count": 0.5, "none": 1.0})


def test_dare_inverse_density_is_unbiased() -> None:
    (delta,) = random_deltas(1)
    generator, draws = torch.Generator().manual_seed(1), 2000
    option = {"density": 0.3, "generators": [generator], "rescale": "inverse_density"}
    mean = torch.stack([dare_linear([delta], [1.0], **option) for _ in range(draws)]).mean(0)
    standard_error = delta.abs() * math.sqrt((1 / 0.3 - 1) / draws)
    # 96 positions: one beyond 4 standard errors has probability 0.6 %; the mean over all must be within 3
    assert ((mean - delta).abs() <= 4 * standard_error).all()
    assert (mean - delta).sum().abs() <= 3 * standard_error.square().sum().sqrt()


def test_dare_is_decided_by_its_generators_alone() -> None:
    deltas, weights = random_deltas(2), [0.6, 0.4]
    torch.manual_seed(0)
    first = dare_ties(deltas, weights, density=0.5, generators=generators(2))
    torch.manual_seed(1)
    assert torch.equal(first, dare_ties(deltas, weights, density=0.5, generators=generators(2)))
    assert not torch.equal(first, dare_ties(deltas, weights, density=0.5, generators=generators(3)[1:]))


def test_dare_without_generator_or_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="one generator or mask per delta"):
        dare_linear(random_deltas(2), [1, 1], density=0.5)


@pytest.mark.parametrize(("t", "end"), [(0.0, 0), (1.0, 1)])
def test_slerp_ends_at_the_deltas(t: float, end: int) -> None:
    deltas, base = random_deltas(2), random_deltas(1, seed=9)[0]
    assert torch.equal(slerp(deltas, [1, 1], t=t), deltas[end])
    torch.testing.assert_close(slerp_full(base, deltas, t), deltas[end])


def test_slerp_of_equal_norms_keeps_the_norm() -> None:
    deltas = [delta / delta.norm() for delta in random_deltas(2)]
    for t in (0.1, 0.5, 0.8):
        torch.testing.assert_close(slerp(deltas, [1, 1], t=t).norm(), torch.tensor(1.0))


def test_slerp_t_comes_from_the_weights() -> None:
    deltas = random_deltas(2)
    assert torch.equal(slerp(deltas, [3, 1]), slerp(deltas, [1, 1], t=0.25))
    assert torch.equal(slerp(deltas, [1, -1]), slerp(deltas, [1, 1], t=0.5))


def test_slerp_along_one_direction_is_linear() -> None:
    (delta,) = random_deltas(1)
    for other in (delta, 3 * delta, -delta):
        assert delta_arc([delta, other], 0.25).linear
        torch.testing.assert_close(slerp([delta, other], [1, 1], t=0.25), 0.75 * delta + 0.25 * other)


def test_slerp_with_a_zero_delta_counts_a_right_angle() -> None:
    (delta,) = random_deltas(1)
    merged = slerp([delta, torch.zeros_like(delta)], [1, 1], t=0.5)
    torch.testing.assert_close(merged, math.sqrt(0.5) * delta)


def test_full_space_is_linear_for_small_deltas_only() -> None:
    base, deltas = 10 * random_deltas(1, seed=9)[0], random_deltas(2)
    assert full_arc(base, [0.1 * delta for delta in deltas], 0.5).linear
    assert not full_arc(base, deltas, 0.5).linear
    assert not delta_arc([0.1 * delta for delta in deltas], 0.5).linear


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: linear(d, [1, -1]), "must not sum to 0"),
        (lambda d: linear(d, [1]), "one number per delta"),
        (lambda d: linear([], []), "one or more tensors"),
        (lambda d: linear([d[0], d[1].T], [1, 1]), r"got shapes \[\[8, 12\], \[12, 8\]\]"),
        (lambda d: slerp(d[:1], [1]), "exactly two"),
        (lambda d: ties(d, [1, 1], density=[0.5]), "one per delta"),
        (lambda d: ties(d, [1, 1], density=1.5), r"in \(0, 1\], got 1.5"),
        (lambda d: ties(d, [1, 1], density=1, election="mas"), r"one of \['mass', 'count'\], got 'mas'"),
    ],
)
def test_wrong_arguments_are_named(call: Callable[[list[Tensor]], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(random_deltas(2))
