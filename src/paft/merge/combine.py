"""Deltas into one, all arithmetic in float32: the last two of a merge's three axes.

Most methods are one formula (mergekit's generalised task arithmetic):

                     sparsify      elect     combine
    linear           -             -         sum / sum of weights
    task_arithmetic  -             -         sum
    ties             magnitude     sign      sum / sum of the weights that agree
    dare_linear      Bernoulli     -         sum
    dare             Bernoulli     sign      sum

`paft.merge.sparsify` is the first axis; here is what follows it. Weights enter before the election and may be
negative. Arrays are matrices [out, in], or any block of their rows.
"""

from collections.abc import Iterable, Sequence
from enum import Enum
from functools import reduce
from operator import add
from typing import Any, TypeVar

import numpy as np

from paft.config import Election, ElectOn, Normalize
from paft.delta.rows import Array
from paft.merge.sparsify import Mask

Choice = TypeVar("Choice", bound=Enum)


def _weigh(deltas: Sequence[Array], weights: Sequence[float]) -> list[Array]:
    return [weight * delta for weight, delta in zip(weights, deltas, strict=True)]


def _elect(votes: Sequence[Array], election: Election) -> list[Mask]:
    """Per vote, where it has the elected sign. A tally of 0 elects +, and a 0 never agrees.

    The TIES reference gives a tally of 0 the majority sign of the whole model instead; in float32 that needs
    an exact cancellation, and the rule here can be applied to one tensor at a time.
    """
    positive = _sum(vote if election is Election.mass else np.sign(vote) for vote in votes) >= 0
    return [((vote > 0) == positive) & (vote != 0) for vote in votes]


def elected(
    deltas: Sequence[Array],
    weights: Sequence[float],
    election: Election,
    elect_on: ElectOn,
    normalize: Normalize,
    scale: float,
) -> Array:
    """scale * sum_i m_i w_i delta_i / N with m_i where delta i has the elected sign and N by `normalize`."""
    weighted = _weigh(deltas, weights)
    agree = _elect(weighted if elect_on is ElectOn.weighted else deltas, election)
    total = _sum(mask * delta for mask, delta in zip(agree, weighted, strict=True))
    match normalize:
        case Normalize.weights:
            total /= _or_1(
                _sum(mask * np.float32(weight) for mask, weight in zip(agree, weights, strict=True))
            )
        case Normalize.count:
            total /= _or_1(_sum(mask.astype(np.float32) for mask in agree))
    total *= scale
    return total


def largest_elected(
    deltas: Sequence[Array], weights: Sequence[float], election: Election, elect_on: ElectOn, scale: float
) -> Array:
    """scale times the w_i delta_i of largest magnitude among those that have the elected sign, 0 where none has."""
    weighted = _weigh(deltas, weights)
    agree = _elect(weighted if elect_on is ElectOn.weighted else deltas, election)
    merged = np.zeros_like(weighted[0])
    for mask, delta in zip(agree, weighted, strict=True):
        np.copyto(merged, delta, where=mask & (np.abs(delta) > np.abs(merged)))
    merged *= scale
    return merged


def added(deltas: Sequence[Array], weights: Sequence[float], normalize: Normalize, scale: float) -> Array:
    """scale * sum_i w_i delta_i / N with N by `normalize`."""
    total = _sum(_weigh(deltas, weights))
    match normalize:
        case Normalize.weights:
            total /= _or_1(_sum(map(np.float32, weights)))
        case Normalize.count:
            total /= len(deltas)
    total *= scale
    return total


def _or_1(divisor: Any) -> Any:
    """1 in place of 0, within mergekit's 1e-8."""
    return divisor + (np.abs(divisor) < 1e-8)


def _sum(terms: Iterable[Any]) -> Any:
    return reduce(add, terms)


def checked(deltas: Sequence[Array], weights: Sequence[float]) -> Sequence[Array]:
    shapes = [list(delta.shape) for delta in deltas]
    if not shapes or shapes.count(shapes[0]) < len(shapes):
        raise ValueError(f"deltas must be one or more matrices of one shape, got shapes {shapes}")
    if len(weights) != len(deltas):
        raise ValueError(
            f"weights must hold one number per delta, got {list(weights)} for {len(deltas)} deltas"
        )
    return [np.asarray(delta, np.float32) for delta in deltas]


def each_density(density: float | Sequence[float], deltas: Sequence[Array]) -> list[float]:
    shares = [float(density)] * len(deltas) if isinstance(density, int | float) else list(density)
    if len(shares) != len(deltas):
        raise ValueError(f"density must be a number or one per delta, got {shares} for {len(deltas)} deltas")
    return shares


def choice(kind: type[Choice], value: Choice | str) -> Choice:
    if value not in (allowed := [member.value for member in kind]):
        raise ValueError(f"{kind.__name__.lower()} must be one of {allowed}, got {value!r}")
    return kind(value)
