"""What a merge drops from a delta before it is combined: the first of its three axes.

`largest` (TIES) keeps the largest values of one tensor, `above` those that reach a threshold which
`magnitude_threshold` found over a whole adapter, `random` (DARE) keeps values at random. Each looks at a whole
delta once and gives a `Sparsifier`, which then works on any block of its rows.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from paft.config import Rescale, require
from paft.delta.rows import BLOCK, Array, Rows, blocks_of

Sparsifier = Callable[[slice, Array], Array]
"""(rows, those rows of the delta) -> the same rows with zeros where values are dropped."""
Mask = NDArray[np.bool_]

EPSILON = 1e-7
"""Below this L1 norm nothing is rescaled (mergekit)."""


def everything(_: slice, block: Array) -> Array:
    """The `Sparsifier` of density 1."""
    return block


def largest(delta: Array, density: float, scratch: Array | None = None) -> Sparsifier:
    """The int(density * size) values of largest magnitude of an array in memory.

    `scratch` is an array [size] that may be written over.
    Of equal magnitudes the first in reading order stay, so the result never depends on a sorting algorithm. One value
    always stays, as in mergekit since 0.1.5.
    """
    require(0 < density <= 1, "density", density, "in (0, 1]")
    if density == 1:
        return everything
    return k_largest(delta, max(1, int(density * delta.size)), scratch)


def k_largest(delta: Array, k: int, scratch: Array | None = None) -> Sparsifier:
    """The k values of largest magnitude; the first in reading order of those that are equal."""
    threshold, surplus = _kth_largest(
        delta.reshape(-1), k, np.empty(delta.size, np.float32) if scratch is None else scratch
    )
    width = delta.size // len(delta)

    def keep(rows: slice, block: Array) -> Array:
        kept = trim(block, threshold)
        begin = rows.indices(len(delta))[0] * width
        first, last = np.searchsorted(surplus, [begin, begin + block.size])
        kept.flat[surplus[first:last] - begin] = 0
        return kept

    return keep


def without_outliers(delta: Array, density: float, gamma: float, scratch: Array | None = None) -> Sparsifier:
    """The int(density * size) largest values below the int(gamma * size) largest (breadcrumbs, mergekit).

    Where both together are more than all values, fewer of the largest go.
    """
    require(0 < density <= 1, "density", density, "in (0, 1]")
    require(0 <= gamma < 1, "gamma", gamma, "in [0, 1)")
    if density == 1:
        return everything
    count = max(1, int(density * delta.size))
    top = min(int(gamma * delta.size), delta.size - count)
    both = k_largest(delta, count + top, scratch)
    if top == 0:
        return both
    outliers = k_largest(delta, top, scratch)
    return lambda rows, block: both(rows, block) - outliers(rows, block)


def above(threshold: float) -> Sparsifier:
    """`trim` with one threshold."""
    return lambda _, block: trim(block, threshold)


def trim(delta: Array, threshold: float) -> Array:
    """Zeros where |delta| < threshold."""
    return delta * (np.abs(delta) >= threshold)


def random(delta: Rows, density: float, mask: Mask, how: Rescale) -> Sparsifier:
    """The values under `mask`, with the size that all of them had."""

    def drop(rows: slice, block: Array) -> Array:
        return block * mask[rows]

    ratio = _l1_ratio(delta, drop) if how is Rescale.l1 else 1.0

    def keep(rows: slice, block: Array) -> Array:
        kept = drop(rows, block)
        if how is Rescale.inverse_density:
            kept /= density
        elif ratio != 1:
            kept *= ratio
        return kept

    return keep


def rescaled(delta: Rows, keep: Sparsifier) -> Sparsifier:
    """What `keep` leaves of a delta, times one factor, so that its L1 norm is the delta's."""
    ratio = _l1_ratio(delta, keep)
    return lambda rows, block: keep(rows, block) * np.float32(ratio)


def nothing(_: slice, block: Array) -> Array:
    """The `Sparsifier` of density 0."""
    return np.zeros_like(block)


def bernoulli_mask(shape: Sequence[int], density: float, generator: np.random.RandomState) -> Mask:
    """True at every position with probability `density`, independently.

    The draws are those of `torch.bernoulli` for a float32 probability and a CPU generator of the same seed: the
    low 24 bits of one 32-bit number of the Mersenne twister for each position in reading order.
    """
    require(0 < density <= 1, "density", density, "in (0, 1]")
    mask = np.ones(shape, np.bool_)
    limit = np.ceil(np.float32(density) * np.float32(2**24))
    flat = mask.reshape(-1)
    for begin in range(0, flat.size, BLOCK):
        piece = flat[begin : begin + BLOCK]
        np.less(_draws(piece.size, generator), np.uint32(limit), out=piece)
    return mask


def mask_by_rank(delta: Rows, density: float, epsilon: float, generator: np.random.RandomState) -> Mask:
    """True with a probability that rises with a value's rank by magnitude in its row, from `density` - `epsilon` for
    the smallest to `density` + `epsilon` for the largest (DELLA, mergekit); draws as in `bernoulli_mask`.

    Of equal magnitudes the first in the row rank lower; the only value of a row has probability `density`.
    """
    low, high = density - epsilon, density + epsilon
    require(
        low > 0 and high < 1,
        "epsilon",
        epsilon,
        f"so that density +/- epsilon is in (0, 1) for density={density}",
    )
    height, width = delta.shape
    steps = np.full(1, 0.5, np.float32) if width == 1 else np.linspace(0, 1, width, dtype=np.float32)
    chances = np.float32(low) + steps * np.float32(2 * epsilon)
    limits = np.ceil(chances * np.float32(2**24)).astype(np.uint32)
    mask = np.empty((height, width), np.bool_)
    for rows, (block,) in blocks_of(delta):
        order = np.argsort(np.abs(block), axis=1, kind="stable")
        at = np.empty_like(block, np.uint32)
        np.put_along_axis(at, order, np.broadcast_to(limits, block.shape), axis=1)
        np.less(_draws(block.size, generator).reshape(block.shape), at, out=mask[rows])
    return mask


def _draws(count: int, generator: np.random.RandomState) -> NDArray[np.uint32]:
    """The 24 random bits that torch compares with a probability, for each of so many positions."""
    bits: NDArray[np.uint32] = generator.randint(0, 2**32, count, dtype=np.uint32)
    return bits & np.uint32(0xFFFFFF)


def tensor_generator(seed: int, branch: str, name: str) -> np.random.RandomState:
    """A generator for one tensor of one branch, whatever the order, the shards, the threads or what ran before."""
    digest = hashlib.sha256(f"{seed}\0{branch}\0{name}".encode()).digest()
    # a Mersenne twister takes 32 bits of seed: the low ones of the 63 that torch is given
    return np.random.RandomState(int.from_bytes(digest[:8], "little") >> 1 & 0xFFFFFFFF)


def _l1_ratio(delta: Rows, keep: Sparsifier) -> float:
    """L1 norm before over after dropping (mergekit since 0.1.0)."""
    before = after = 0.0
    for rows, (block,) in blocks_of(delta):
        before += float(np.abs(block).sum(dtype=np.float64))
        after += float(np.abs(keep(rows, block)).sum(dtype=np.float64))
    return 1.0 if min(before, after) < EPSILON else before / after


def _kth_largest(flat: Array, k: int, scratch: Array) -> tuple[float, NDArray[np.intp]]:
    """The k-th largest magnitude, and where the values equal to it stand that are one too many."""
    magnitude = np.abs(flat, out=scratch)
    magnitude.partition(flat.size - k)
    threshold = magnitude[flat.size - k]
    surplus = np.count_nonzero(magnitude[: flat.size - k] == threshold)
    if surplus == 0 or threshold == 0:
        return float(threshold), np.empty(0, np.intp)
    pieces = [slice(begin, begin + BLOCK) for begin in range(0, flat.size, BLOCK)]
    equal = [np.flatnonzero(np.abs(flat[piece]) == threshold) + piece.start for piece in pieces]
    return float(threshold), np.concatenate(equal)[-surplus:]


# Over a whole adapter the tensors are not in memory together. The order of non-negative floats is the order of
# their bits read as integers: one histogram over the upper 16 bits finds the bin of the k-th largest, a second one
# over the lower 16 bits its exact value.


def magnitude_threshold(deltas: Callable[[], Iterable[Rows]], density: float) -> float:
    """The magnitude from which on `trim` keeps a share `density` of all tensors together.

    `deltas()` gives one adapter's tensors and is called twice. As in the TIES reference implementation,
    int(n * density) + 1 values reach the threshold, more if some are equal to it.
    """
    require(0 < density <= 1, "density", density, "in (0, 1]")
    coarse = np.zeros(2**15, np.int64)
    for bits in _magnitude_bits(deltas()):
        coarse += np.bincount(bits >> 16, minlength=2**15)
    n = int(coarse.sum())
    k = int(n * density) + 1
    if k > n:
        return 0.0
    upper, k = _locate(coarse, k)
    fine = np.zeros(2**16, np.int64)
    for bits in _magnitude_bits(deltas()):
        fine += np.bincount(bits[bits >> 16 == upper] & 0xFFFF, minlength=2**16)
    lower, _ = _locate(fine, k)
    return float(np.uint32(upper << 16 | lower).view(np.float32))


def _magnitude_bits(deltas: Iterable[Rows]) -> Iterator[NDArray[np.int32]]:
    return (np.abs(block).reshape(-1).view(np.int32) for d in deltas for _, (block,) in blocks_of(d))


def _locate(counts: NDArray[np.int64], k: int) -> tuple[int, int]:
    """The bin of the k-th largest, and its rank from the top within that bin."""
    from_top = counts[::-1].cumsum()
    i = int(np.searchsorted(from_top, k))
    over = int(from_top[i - 1]) if i else 0
    return len(counts) - 1 - i, k - over
