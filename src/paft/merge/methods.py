"""Five ways to combine deltas into one; deltas in, merged delta out, all arithmetic in float32.

They are one formula with three axes (mergekit's generalised task arithmetic):

                     sparsify      elect     combine
    linear           -             -         sum / sum of weights
    task_arithmetic  -             -         sum
    ties             magnitude     sign      sum / sum of the weights that agree
    dare_linear      Bernoulli     -         sum
    dare_ties        Bernoulli     sign      sum

Defaults are mergekit's, except that a density is always the caller's. Weights enter before the election and may
be negative. Deltas are matrices [out, in]; those that are already sparse, or any block of their rows, are combined
with density 1.
"""

from collections.abc import Iterable, Sequence
from enum import Enum
from functools import reduce
from operator import add
from typing import Any, TypeVar

import numpy as np

from paft.config import Election, ElectOn, Normalize, Rescale
from paft.delta.rows import Array
from paft.merge.sparsify import Mask, bernoulli_mask, largest, random

Choice = TypeVar("Choice", bound=Enum)
ALL = slice(None)


def linear(
    deltas: Sequence[Array], weights: Sequence[float], *, normalize: bool = True, scale: float = 1.0
) -> Array:
    """Weighted mean of the deltas (weighted sum unless `normalize`), times `scale`.

    Equals averaging whole models where the weights sum to 1. Raises `ValueError` for weights that sum to 0.
    """
    deltas = _checked(deltas, weights)
    if normalize and abs(sum(weights)) < 1e-8:
        raise ValueError(f"weights must not sum to 0, got {list(weights)}; or set normalize=False")
    return _add(deltas, weights, Normalize.weights if normalize else Normalize.none, scale)


def task_arithmetic(deltas: Sequence[Array], weights: Sequence[float], *, scale: float = 1.0) -> Array:
    """Weighted sum of the deltas times `scale` (Ilharco et al. 2023, lambda)."""
    return _add(_checked(deltas, weights), weights, Normalize.none, scale)


def ties(
    deltas: Sequence[Array],
    weights: Sequence[float],
    *,
    density: float | Sequence[float],
    scale: float = 1.0,
    election: Election | str = Election.mass,
    elect_on: ElectOn | str = ElectOn.weighted,
    normalize: Normalize | str = Normalize.weights,
) -> Array:
    """Trim each delta by magnitude, elect a sign per position, average what has it (Yadav et al. 2023).

    For the global scope pass deltas through `sparsify.trim` first and give density 1.
    """
    deltas = _checked(deltas, weights)
    kept = [magnitude(delta, share) for delta, share in zip(deltas, _each(density, deltas), strict=True)]
    vote = _choice(Election, election), _choice(ElectOn, elect_on)
    return _add_agreeing(kept, weights, *vote, _choice(Normalize, normalize), scale)


def magnitude(delta: Array, density: float) -> Array:
    """`sparsify.largest` of a whole delta."""
    return largest(delta, density)(ALL, delta)


def dare_ties(
    deltas: Sequence[Array],
    weights: Sequence[float],
    *,
    density: float | Sequence[float],
    generators: Sequence[np.random.RandomState] | None = None,
    masks: Sequence[Mask] | None = None,
    rescale: Rescale | str = Rescale.l1,
    scale: float = 1.0,
    election: Election | str = Election.mass,
    elect_on: ElectOn | str = ElectOn.weighted,
    normalize: Normalize | str = Normalize.none,
) -> Array:
    """Drop at random and rescale, then elect a sign per position and add what has it (Yu et al. 2023).

    The masks are drawn from `generators`, one per delta, or given as `masks` of zeros and ones.
    """
    deltas = _checked(deltas, weights)
    kept = _drop(deltas, _each(density, deltas), _choice(Rescale, rescale), generators, masks)
    vote = _choice(Election, election), _choice(ElectOn, elect_on)
    return _add_agreeing(kept, weights, *vote, _choice(Normalize, normalize), scale)


def dare_linear(
    deltas: Sequence[Array],
    weights: Sequence[float],
    *,
    density: float | Sequence[float],
    generators: Sequence[np.random.RandomState] | None = None,
    masks: Sequence[Mask] | None = None,
    rescale: Rescale | str = Rescale.l1,
    scale: float = 1.0,
    normalize: Normalize | str = Normalize.none,
) -> Array:
    """Drop at random and rescale, then add (Yu et al. 2023); masks as in `dare_ties`."""
    deltas = _checked(deltas, weights)
    kept = _drop(deltas, _each(density, deltas), _choice(Rescale, rescale), generators, masks)
    return _add(kept, weights, _choice(Normalize, normalize), scale)


def _drop(
    deltas: Sequence[Array],
    density: Sequence[float],
    how: Rescale,
    generators: Sequence[np.random.RandomState] | None,
    masks: Sequence[Mask] | None,
) -> Sequence[Array]:
    if masks is None:
        if min(density) == 1:
            return deltas
        if generators is None:
            raise ValueError(f"density {list(density)} drops at random: give one generator or mask per delta")
        drawn = zip(deltas, density, generators, strict=True)
        masks = [bernoulli_mask(delta.shape, share, generator) for delta, share, generator in drawn]
    each = zip(deltas, density, masks, strict=True)
    return [random(delta, share, mask, how)(ALL, delta) for delta, share, mask in each]


def _weigh(deltas: Sequence[Array], weights: Sequence[float]) -> list[Array]:
    return [weight * delta for weight, delta in zip(weights, deltas, strict=True)]


def _elect(votes: Sequence[Array], election: Election) -> list[Mask]:
    """Per vote, where it has the elected sign. A tally of 0 elects +, and a 0 never agrees.

    The TIES reference gives a tally of 0 the majority sign of the whole model instead; in float32 that needs
    an exact cancellation, and the rule here can be applied to one tensor at a time.
    """
    positive = _sum(vote if election is Election.mass else np.sign(vote) for vote in votes) >= 0
    return [((vote > 0) == positive) & (vote != 0) for vote in votes]


def _add_agreeing(
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


def _add(deltas: Sequence[Array], weights: Sequence[float], normalize: Normalize, scale: float) -> Array:
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


def _checked(deltas: Sequence[Array], weights: Sequence[float]) -> Sequence[Array]:
    shapes = [list(delta.shape) for delta in deltas]
    if not shapes or shapes.count(shapes[0]) < len(shapes):
        raise ValueError(f"deltas must be one or more matrices of one shape, got shapes {shapes}")
    if len(weights) != len(deltas):
        raise ValueError(
            f"weights must hold one number per delta, got {list(weights)} for {len(deltas)} deltas"
        )
    return [np.asarray(delta, np.float32) for delta in deltas]


def _each(density: float | Sequence[float], deltas: Sequence[Array]) -> list[float]:
    shares = [float(density)] * len(deltas) if isinstance(density, int | float) else list(density)
    if len(shares) != len(deltas):
        raise ValueError(f"density must be a number or one per delta, got {shares} for {len(deltas)} deltas")
    return shares


def _choice(kind: type[Choice], value: Choice | str) -> Choice:
    if value not in (allowed := [member.value for member in kind]):
        raise ValueError(f"{kind.__name__.lower()} must be one of {allowed}, got {value!r}")
    return kind(value)
