"""Spherical interpolation from the first delta to the second, of the deltas or of the whole weights."""

import math
from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import NamedTuple

import numpy as np

from paft.delta.rows import BLOCK, Array, Rows, blocks_of


class Arc(NamedTuple):
    """Coefficients of the two ends of an interpolation; `linear` where it is a straight line."""

    first: float
    second: float
    linear: bool


def slerp(deltas: Sequence[Array], t: float) -> Array:
    """The point at `t` on the arc from the first delta (t = 0) to the second (t = 1); exactly two.

    mergekit's nuslerp with weights 1 - t and t: one angle for the whole tensor, sine weights on the unnormalised
    deltas. A zero delta counts as at a right angle.
    """
    first, second = _two(deltas)
    return along(delta_arc(gram_of(first, second), t), [first, second])


class Gram(NamedTuple):
    """Inner products of two matrices with themselves and each other, in float64."""

    first: float = 0.0
    second: float = 0.0
    both: float = 0.0

    @property
    def cosine(self) -> float:
        """In [-1, 1]; 0 where a norm is 0. Norms count as at least 1e-7, as in mergekit's nuslerp."""
        norms = math.sqrt(max(self.first, 1e-14) * max(self.second, 1e-14))
        return min(1.0, max(-1.0, self.both / norms))

    def add(self, other: "Gram") -> "Gram":
        """That of two pairs of matrices, one below the other."""
        return Gram(*map(add, self, other))


def gram_of(first: Array, second: Array) -> Gram:
    """Of two dense matrices, a bounded piece at a time.

    A float32 cosine of four million elements has come out at 1.0002.
    """
    total = Gram()
    a, b = first.reshape(-1), second.reshape(-1)
    for begin in range(0, a.size, BLOCK):
        x, y = (flat[begin : begin + BLOCK].astype(np.float64) for flat in (a, b))
        total = total.add(Gram(float(x @ x), float(y @ y), float(x @ y)))
    return total


def gram_of_weights(base: Rows, first: Rows, second: Rows) -> Gram:
    """`gram_of` the base's rows plus those of either delta."""
    blocks = (block for _, block in blocks_of(base, first, second))
    return reduce(Gram.add, (gram_of(weight + one, weight + other) for weight, one, other in blocks), Gram())


def delta_arc(gram: Gram, t: float) -> Arc:
    """The arc between two deltas; linear only where their angle is too small or too flat to be divided by."""
    return _arc(gram.cosine, t, linear_above=1 - 1e-12)


def full_arc(gram: Gram, t: float) -> Arc:
    """The arc between two whole weights, linear above mergekit's |cosine| of 0.9995."""
    return _arc(gram.cosine, t, linear_above=0.9995)


def along(arc: Arc, deltas: Sequence[Array], base: Array | None = None) -> Array:
    """The merged delta at an arc's coefficients, of the deltas or, with `base`, of the whole weights."""
    merged = arc.first * deltas[0] + arc.second * deltas[1]
    # w0 (base + d0) + w1 (base + d1) - base without the cancellation
    return merged if base is None else merged + (arc.first + arc.second - 1) * base


def _arc(cosine: float, t: float, *, linear_above: float) -> Arc:
    if abs(cosine) > linear_above:
        return Arc(1 - t, t, True)
    angle = math.acos(cosine)
    return Arc(math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle), False)


def _two(deltas: Sequence[Array]) -> tuple[Array, Array]:
    if len(deltas) != 2:
        raise ValueError(f"slerp joins exactly two deltas, got {len(deltas)}; use linear for more")
    first, second = (np.asarray(delta, np.float32) for delta in deltas)
    if first.shape != second.shape:
        raise ValueError(f"slerp joins deltas of one shape, got {list(first.shape)} and {list(second.shape)}")
    return first, second
