"""What a merge drops from a delta before it is combined: the first of its three axes.

`magnitude` (TIES) keeps the largest values of one tensor, `trim` those above a threshold that
`magnitude_threshold` found over a whole adapter, a Bernoulli mask with `rescale` (DARE) keeps values at
random.
"""

import hashlib
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from paft.config import Rescale, require

EPSILON = 1e-7
"""Below this L1 norm nothing is rescaled (mergekit)."""
CHUNK = 2**22
"""Elements counted at a time, which bounds the scratch memory."""


def magnitude(delta: Tensor, density: float) -> Tensor:
    """The int(density * numel) values of largest magnitude in place, zeros elsewhere.

    Of equal magnitudes the first in reading order stay, so the result never depends on a sorting algorithm.
    Raises `ValueError` where nothing would be kept, as mergekit does up to 0.1.4 (0.1.5 keeps one value).
    """
    require(0 < density <= 1, "density", density, "in (0, 1]")
    if density == 1:
        return delta
    k = int(density * delta.numel())
    if k == 0:
        raise ValueError(
            f"density must keep at least one of the {delta.numel()} values of a {list(delta.shape)} tensor, "
            f"got {density}; use at least {1 / delta.numel():.3g}"
        )
    flat = delta.reshape(-1)
    threshold = _kth_largest(lambda: [flat], _coarse([flat]), k)
    kept = flat.abs() > threshold
    equal = (flat.abs() == threshold).nonzero().squeeze(1)
    kept[equal[: k - int(kept.count_nonzero())]] = True
    return torch.where(kept, flat, 0).view(delta.shape)


def magnitude_threshold(deltas: Callable[[], Iterable[Tensor]], density: float) -> float:
    """The magnitude from which on `trim` keeps a share `density` of all tensors together.

    `deltas()` gives one adapter's tensors and is called twice, so they are never all in memory. As in the
    TIES reference implementation, int(n * density) + 1 values reach the threshold, more if some are equal to
    it.
    """
    require(0 < density <= 1, "density", density, "in (0, 1]")
    coarse = _coarse(deltas())
    n = int(coarse.sum())
    k = int(n * density) + 1
    return _kth_largest(deltas, coarse, k) if k <= n else 0.0


def trim(delta: Tensor, threshold: float) -> Tensor:
    """Zeros where |delta| < threshold."""
    return torch.where(delta.abs() >= threshold, delta, 0)


def bernoulli_mask(shape: Iterable[int], density: float, generator: torch.Generator) -> Tensor:
    """Bool mask whose every position is True with probability `density`, independently."""
    require(0 < density <= 1, "density", density, "in (0, 1]")
    return torch.bernoulli(torch.full(tuple(shape), float(density)), generator=generator).bool()


def rescale(original: Tensor, dropped: Tensor, density: float, how: Rescale) -> Tensor:
    """`dropped` with the size that `original` had.

    `inverse_density` divides by density and is unbiased over draws (DARE, Yu et al. 2023, equation 3; peft);
    `l1` restores the L1 norm exactly for this draw (mergekit since 0.1.0); `none` leaves it small.
    """
    match how:
        case Rescale.inverse_density:
            return dropped / density
        case Rescale.l1:
            before, after = (x.abs().sum(dtype=torch.float64).item() for x in (original, dropped))
            return dropped if min(before, after) < EPSILON else dropped * (before / after)
        case Rescale.none:
            return dropped


def tensor_generator(seed: int, branch: str, name: str) -> torch.Generator:
    """A CPU generator for one tensor of one branch, whatever the order, the shards or what ran before."""
    digest = hashlib.sha256(f"{seed}\0{branch}\0{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


# The order of non-negative floats is the order of their bits read as integers. One histogram over the upper
# 16 bits finds the bin of the k-th largest, a second one over the lower 16 bits its exact value: two linear
# passes, several times faster than a sort, and the tensors need not be in memory together.


def _bits(deltas: Iterable[Tensor]) -> Iterable[Tensor]:
    for delta in deltas:
        for piece in delta.reshape(-1).split(CHUNK):
            yield piece.abs().view(torch.int32)


def _coarse(deltas: Iterable[Tensor]) -> Tensor:
    counts = torch.zeros(2**15, dtype=torch.int64)
    for bits in _bits(deltas):
        counts += torch.bincount(bits >> 16, minlength=2**15)
    return counts


def _kth_largest(deltas: Callable[[], Iterable[Tensor]], coarse: Tensor, k: int) -> float:
    upper, k = _locate(coarse, k)
    fine = torch.zeros(2**16, dtype=torch.int64)
    for bits in _bits(deltas()):
        fine += torch.bincount(bits[bits >> 16 == upper] & 0xFFFF, minlength=2**16)
    lower, _ = _locate(fine, k)
    return torch.tensor(upper << 16 | lower, dtype=torch.int32).view(torch.float32).item()


def _locate(counts: Tensor, k: int) -> tuple[int, int]:
    """The bin of the k-th largest, and its rank from the top within that bin."""
    from_top = counts.flip(0).cumsum(0)
    i = int(torch.searchsorted(from_top, k))
    above = int(from_top[i - 1]) if i else 0
    return len(counts) - 1 - i, k - above
