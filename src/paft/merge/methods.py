"""Six ways to combine deltas into one; deltas in, merged delta out, all arithmetic in float32.

Five of them are one formula with three axes (mergekit's generalised task arithmetic):

                     sparsify      elect     combine
    linear           -             -         sum / sum of weights
    task_arithmetic  -             -         sum
    ties             magnitude     sign      sum / sum of the weights that agree
    dare_linear      Bernoulli     -         sum
    dare_ties        Bernoulli     sign      sum

and slerp follows the arc from the first to the second delta. Defaults are mergekit's, except that a density
is always the caller's. K is the number of deltas; weights enter before the election and may be negative.
"""

import math
from collections.abc import Iterable, Sequence
from enum import Enum
from functools import reduce
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from paft.config import Election, ElectOn, Normalize, Rescale
from paft.delta import cosine
from paft.merge.sparsify import bernoulli_mask, magnitude, rescale

Choice = TypeVar("Choice", bound=Enum)


def linear(
    deltas: Sequence[Tensor], weights: Sequence[float], *, normalize: bool = True, scale: float = 1.0
) -> Tensor:
    """Weighted mean of the deltas (weighted sum unless `normalize`), times `scale`.

    Equals averaging whole models where the weights sum to 1. Raises `ValueError` for weights that sum to 0.
    """
    deltas = _checked(deltas, weights)
    deltas = _checked(deltas, weights)
    if normalize and abs(sum(weights)) < 1e-8:
        raise ValueError(f"weights must not sum to 0, got {list(weights)}; or set normalize=False")
    return _combine(deltas, weights, None, Normalize.weights if normalize else Normalize.none, scale)


def task_arithmetic(deltas: Sequence[Tensor], weights: Sequence[float], *, scale: float = 1.0) -> Tensor:
    """Weighted sum of the deltas times `scale` (Ilharco et al. 2023, lambda)."""
    return _combine(_checked(deltas, weights), weights, None, Normalize.none, scale)


def ties(
    deltas: Sequence[Tensor],
    weights: Sequence[float],
    *,
    density: float | Sequence[float],
    scale: float = 1.0,
    election: Election | str = Election.mass,
    elect_on: ElectOn | str = ElectOn.weighted,
    normalize: Normalize | str = Normalize.weights,
) -> Tensor:
    """Trim each delta by magnitude, elect a sign per position, average what has it (Yadav et al. 2023).

    For the global scope pass deltas through `sparsify.trim` first and give density 1.
    """
    kept = [magnitude(delta, share) for delta, share in zip(deltas, _each(density, deltas), strict=True)]
    agree = _elect(kept, weights, _choice(Election, election), _choice(ElectOn, elect_on))
    return _combine(kept, weights, agree, _choice(Normalize, normalize), scale)


def dare_ties(
    deltas: Sequence[Tensor],
    weights: Sequence[float],
    *,
    density: float | Sequence[float],
    generators: Sequence[torch.Generator] | None = None,
    masks: Sequence[Tensor] | None = None,
    rescale: Rescale | str = Rescale.l1,
    scale: float = 1.0,
    election: Election | str = Election.mass,
    elect_on: ElectOn | str = ElectOn.weighted,
    normalize: Normalize | str = Normalize.none,
) -> Tensor:
    """Drop at random and rescale, then elect a sign per position and add what has it (Yu et al. 2023).

    The masks are drawn from `generators`, one per delta, or given as `masks` of zeros and ones.
    """
    deltas = _checked(deltas, weights)
    kept = _drop(deltas, _each(density, deltas), _choice(Rescale, rescale), generators, masks)
    agree = _elect(kept, weights, _choice(Election, election), _choice(ElectOn, elect_on))
    return _combine(kept, weights, agree, _choice(Normalize, normalize), scale)


def dare_linear(
    deltas: Sequence[Tensor],
    weights: Sequence[float],
    *,
    density: float | Sequence[float],
    generators: Sequence[torch.Generator] | None = None,
    masks: Sequence[Tensor] | None = None,
    rescale: Rescale | str = Rescale.l1,
    scale: float = 1.0,
    normalize: Normalize | str = Normalize.none,
) -> Tensor:
    """Drop at random and rescale, then add (Yu et al. 2023); masks as in `dare_ties`."""
    deltas = _checked(deltas, weights)
    kept = _drop(deltas, _each(density, deltas), _choice(Rescale, rescale), generators, masks)
    return _combine(kept, weights, None, _choice(Normalize, normalize), scale)


class Arc(NamedTuple):
    """Coefficients of the two ends of an interpolation; `linear` where it is a straight line."""

    first: float
    second: float
    linear: bool


def slerp(deltas: Sequence[Tensor], weights: Sequence[float], *, t: float | None = None) -> Tensor:
    """The point at `t` on the arc from the first delta (t = 0) to the second (t = 1); exactly two.

    mergekit's nuslerp: one angle for the whole tensor, sine weights on the unnormalised deltas. `t` defaults
    to w2 / (w1 + w2), 0.5 where that is 0 / 0. A zero delta counts as at a right angle.
    """
    first, second = _two(_checked(deltas, weights))
    if t is None:
        total = sum(weights)
        t = weights[1] / total if abs(total) >= 1e-6 else 0.5
    return along(delta_arc([first, second], t), [first, second])


def slerp_full(base: Tensor, deltas: Sequence[Tensor], t: float) -> Tensor:
    """mergekit's slerp of the whole weights base + delta, as a merged delta.

    A straight line where |cosine| > 0.9995, which for LoRA deltas is nearly everywhere: see `full_arc`.
    """
    first, second = _two(_checked(deltas, [1 - t, t]))
    return along(full_arc(base, [first, second], t), [first, second], base)


def delta_arc(deltas: Sequence[Tensor], t: float) -> Arc:
    """The arc between two deltas; linear only where their angle is too small or too flat to be divided by."""
    return _arc(cosine(*_two(deltas)), t, linear_above=1 - 1e-12)


def full_arc(base: Tensor, deltas: Sequence[Tensor], t: float) -> Arc:
    """The arc between the two whole weights, linear above mergekit's |cosine| of 0.9995."""
    first, second = _two(deltas)
    return _arc(cosine(base.float() + first, base.float() + second), t, linear_above=0.9995)


def along(arc: Arc, deltas: Sequence[Tensor], base: Tensor | None = None) -> Tensor:
    """The merged delta at an arc's coefficients, of the deltas or, with `base`, of the whole weights."""
    merged = arc.first * deltas[0].float() + arc.second * deltas[1].float()
    # w0 (base + d0) + w1 (base + d1) - base without the cancellation
    return merged if base is None else merged + (arc.first + arc.second - 1) * base.float()


def _arc(cosine: float, t: float, *, linear_above: float) -> Arc:
    if abs(cosine) > linear_above:
        return Arc(1 - t, t, True)
    angle = math.acos(cosine)
    return Arc(math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle), False)


def _drop(
    deltas: Sequence[Tensor],
    density: Sequence[float],
    how: Rescale,
    generators: Sequence[torch.Generator] | None,
    masks: Sequence[Tensor] | None,
) -> list[Tensor]:
    if masks is None:
        if generators is None and min(density) < 1:
            raise ValueError(f"density {list(density)} drops at random: give one generator or mask per delta")
        generators = generators or [torch.Generator() for _ in deltas]
        drawn = zip(deltas, density, generators, strict=True)
        masks = [bernoulli_mask(delta.shape, share, generator) for delta, share, generator in drawn]
    dropped = [torch.where(mask.bool(), delta, 0) for delta, mask in zip(deltas, masks, strict=True)]
    return [rescale(*each, how) for each in zip(deltas, dropped, density, strict=True)]


def _elect(
    deltas: Sequence[Tensor], weights: Sequence[float], election: Election, elect_on: ElectOn
) -> list[Tensor]:
    """Per delta, where it has the elected sign. A tally of 0 elects +, and a 0 never agrees.

    The TIES reference gives a tally of 0 the majority sign of the whole model instead; in float32 that needs
    an exact cancellation, and the rule here can be applied to one tensor at a time.
    """
    votes = list(deltas)
    if elect_on is ElectOn.weighted:
        votes = [weight * delta for weight, delta in zip(weights, deltas, strict=True)]
    positive = _sum(vote if election is Election.mass else vote.sign() for vote in votes) >= 0
    return [torch.where(positive, vote > 0, vote < 0) for vote in votes]


def _combine(
    deltas: Sequence[Tensor],
    weights: Sequence[float],
    agree: Sequence[Tensor] | None,
    normalize: Normalize,
    scale: float,
) -> Tensor:
    """scale * sum_i m_i w_i delta_i / N with m = `agree` (1 without an election) and N by `normalize`."""
    agree = agree or [torch.ones((), dtype=torch.bool)] * len(deltas)
    each = list(zip(agree, weights, deltas, strict=True))
    total = _sum(m * (w * delta) for m, w, delta in each)
    match normalize:
        case Normalize.weights:
            share = _sum(m * w for m, w, _ in each)
            total = total / torch.where(share.abs() < 1e-8, 1, share)
        case Normalize.count:
            total = total / _sum(m.float() for m in agree).clamp(min=1)
        case Normalize.none:
            pass
    return total * scale


def _sum(terms: Iterable[Tensor]) -> Tensor:
    return reduce(torch.add, terms)


def _checked(deltas: Sequence[Tensor], weights: Sequence[float]) -> list[Tensor]:
    shapes = [list(delta.shape) for delta in deltas]
    if not shapes or shapes.count(shapes[0]) < len(shapes):
        raise ValueError(f"deltas must be one or more tensors of one shape, got shapes {shapes}")
    if len(weights) != len(deltas):
        raise ValueError(
            f"weights must hold one number per delta, got {list(weights)} for {len(deltas)} deltas"
        )
    return [delta.float() for delta in deltas]


def _two(deltas: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    if len(deltas) != 2:
        raise ValueError(f"slerp joins exactly two deltas, got {len(deltas)}; use linear for more")
    return deltas[0], deltas[1]


def _each(density: float | Sequence[float], deltas: Sequence[Tensor]) -> list[float]:
    shares = [float(density)] * len(deltas) if isinstance(density, int | float) else list(density)
    if len(shares) != len(deltas):
        raise ValueError(f"density must be a number or one per delta, got {shares} for {len(deltas)} deltas")
    return shares


def _choice(kind: type[Choice], value: Choice | str) -> Choice:
    if value not in (allowed := [member.value for member in kind]):
        raise ValueError(f"{kind.__name__.lower()} must be one of {allowed}, got {value!r}")
    return kind(value)
