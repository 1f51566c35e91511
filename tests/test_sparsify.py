"""What is dropped, exactly: counts, thresholds, norms, and which seed decides."""

import pytest
import torch

from paft.config import Rescale
from paft.merge.sparsify import (
    bernoulli_mask,
    magnitude,
    magnitude_threshold,
    rescale,
    tensor_generator,
    trim,
)


def random_delta(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 1e-3


@pytest.mark.parametrize("density", [0.01, 0.29, 0.5, 0.999, 1.0])
def test_magnitude_keeps_exactly_the_largest(density: float) -> None:
    delta = random_delta(20, 50)
    kept = magnitude(delta, density)
    k = int(density * delta.numel())
    assert kept.count_nonzero() == k
    assert torch.equal(kept.abs().flatten().sort().values[-k:], delta.abs().flatten().sort().values[-k:])
    assert torch.equal(kept[kept != 0], delta[kept != 0])


def test_magnitude_against_a_stable_sort_where_values_tie() -> None:
    delta = (random_delta(30, 40) * 2000).round() / 4
    order = delta.abs().flatten().sort(descending=True, stable=True).indices
    mask = torch.zeros(delta.numel()).index_fill(0, order[:500], 1.0).view(30, 40)
    assert torch.equal(magnitude(delta, 500 / 1200), delta * mask)


def test_magnitude_reads_a_transposed_delta_in_its_own_order() -> None:
    ones = torch.ones(4, 6).T
    assert torch.equal(magnitude(ones, 0.5), torch.tensor([1.0, 0.0]).repeat_interleave(12).view(6, 4))


def test_magnitude_that_would_keep_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least one of the 6 values .* got 0.1; use at least 0.167"):
        magnitude(torch.ones(2, 3), 0.1)


@pytest.mark.parametrize("density", [0.0, -0.5, 1.5])
def test_density_out_of_range_is_refused(density: float) -> None:
    with pytest.raises(ValueError, match=r"density must be in \(0, 1\]"):
        magnitude(torch.ones(2, 3), density)


@pytest.mark.parametrize("density", [0.001, 0.2, 0.5, 0.9])
def test_global_threshold_against_a_sort_of_everything(density: float) -> None:
    tensors = [random_delta(30, 40), 10 * random_delta(7, 11, seed=1), torch.zeros(5, 5)]
    everything = torch.cat([tensor.abs().flatten() for tensor in tensors]).sort(descending=True).values
    threshold = magnitude_threshold(lambda: iter(tensors), density)
    assert threshold == everything[int(len(everything) * density)].item()


def test_global_scope_keeps_more_of_the_larger_tensor() -> None:
    tensors = [random_delta(30, 40), 10 * random_delta(30, 40, seed=1)]
    threshold = magnitude_threshold(lambda: tensors, 0.5)
    counts = [int(trim(tensor, threshold).count_nonzero()) for tensor in tensors]
    assert sum(counts) == 1201
    assert counts[1] > 2 * counts[0]


def test_density_1_trims_nothing() -> None:
    delta = random_delta(30, 40)
    assert torch.equal(trim(delta, magnitude_threshold(lambda: [delta], 1.0)), delta)


def test_rescale_restores_the_l1_norm_of_this_draw() -> None:
    delta = random_delta(20, 50)
    dropped = torch.where(bernoulli_mask(delta.shape, 0.3, torch.Generator().manual_seed(0)), delta, 0)
    restored = rescale(delta, dropped, 0.3, Rescale.l1)
    torch.testing.assert_close(restored.abs().sum(), delta.abs().sum())
    assert torch.equal(rescale(delta, dropped, 0.3, Rescale.inverse_density), dropped / 0.3)
    assert torch.equal(rescale(delta, dropped, 0.3, Rescale.none), dropped)


def test_rescale_leaves_an_empty_draw_alone() -> None:
    assert torch.equal(rescale(torch.ones(3), torch.zeros(3), 0.1, Rescale.l1), torch.zeros(3))


def test_bernoulli_mask_keeps_its_share() -> None:
    mask = bernoulli_mask((200, 500), 0.3, torch.Generator().manual_seed(0))
    standard_error = (0.3 * 0.7 / mask.numel()) ** 0.5
    assert abs(mask.float().mean().item() - 0.3) < 3 * standard_error


def test_generator_depends_on_seed_branch_and_name_only() -> None:
    def draw(seed: int, branch: str, name: str) -> list[float]:
        return torch.rand(4, generator=tensor_generator(seed, branch, name)).tolist()

    first = draw(42, "sft", "a.weight")
    torch.rand(3)
    assert draw(42, "sft", "a.weight") == first
    others = [draw(43, "sft", "a.weight"), draw(42, "preference", "a.weight"), draw(42, "sft", "b.weight")]
    assert first not in others
