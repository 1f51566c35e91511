"""The configured method as what happens to one tensor.

A method first looks at whole deltas, for a threshold, a mask or an angle, and then merges any block of their rows.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from threading import local

import numpy as np

from paft.config import (
    DareMerge,
    DareTies,
    Linear,
    MergeConfig,
    Scope,
    Slerp,
    SlerpSpace,
    TaskArithmetic,
    Ties,
)
from paft.delta.adapter import Factors, StoredFactors, inner
from paft.delta.rows import Array, Rows, blocks_of
from paft.merge.methods import dare_linear, dare_ties, linear, task_arithmetic, ties
from paft.merge.slerp import Gram, along, delta_arc, full_arc, gram_of
from paft.merge.sparsify import (
    Sparsifier,
    above,
    bernoulli_mask,
    everything,
    largest,
    magnitude_threshold,
    random,
    tensor_generator,
)

Adapters = Mapping[str, Mapping[str, StoredFactors]]
"""Branch name -> its adapter."""
Combine = Callable[[list[Array], Array], Array]
"""(the same rows of every sparse delta, of the base) -> those rows of the merged delta."""


@dataclass(frozen=True)
class TensorMerge:
    """How the rows of one tensor are merged."""

    deltas: Sequence[Rows]
    combine: Combine
    sparsify: Sequence[Sparsifier]
    linear: bool | None = None
    """Whether slerp is a straight line here; None for the other methods."""

    def merge(self, rows: slice, deltas: Sequence[Array], base: Array) -> Array:
        kept = [keep(rows, delta) for keep, delta in zip(self.sparsify, deltas, strict=True)]
        return self.combine(kept, base)


Plan = Callable[[str, Sequence[Factors], Rows], TensorMerge]
"""(tensor name, one delta per branch, base weight) -> how they are merged. Called from several threads."""


def plan_for(method: MergeConfig, adapters: Adapters) -> Plan:
    """Each method gets its own options and no others. Raises `ValueError` for a type that is no method."""
    match method:
        case Linear(weights=weights, scale=scale, normalize=normalize):
            return _plain(lambda d, _: linear(d, weights, normalize=normalize, scale=scale))
        case TaskArithmetic(weights=weights, scale=scale):
            return plain_sum(weights, scale)
        case Slerp():
            return partial(_slerp, method)
        case Ties(scope=Scope.tensor):
            return partial(_ties, method, Buffers())
        case Ties():
            return _global_ties(method, adapters)
        case DareMerge():
            return partial(_dare, method, list(adapters))
    raise ValueError(f"no merge is written for {type(method).__name__}")


def plain_sum(weights: list[float], scale: float = 1.0) -> Plan:
    return _plain(lambda deltas, _: task_arithmetic(deltas, weights, scale=scale))


def _plain(combine: Combine) -> Plan:
    return lambda _, deltas, __: TensorMerge(deltas, combine, [everything] * len(deltas))


def _slerp(method: Slerp, name: str, deltas: Sequence[Factors], base: Rows) -> TensorMerge:
    first, second = deltas
    if method.space is SlerpSpace.delta:
        arc = delta_arc(gram_of_factors(first, second), method.t)
        return TensorMerge(deltas, lambda d, _: along(arc, d), [everything] * 2, arc.linear)
    gram = Gram()
    for _, (weight, one, other) in blocks_of(base, first, second):
        gram = gram.add(gram_of(weight + one, weight + other))
    arc = full_arc(gram, method.t)
    return TensorMerge(deltas, lambda d, weight: along(arc, d, weight), [everything] * 2, arc.linear)


def gram_of_factors(first: Factors, second: Factors) -> Gram:
    """`gram_of` two deltas without computing them."""
    return Gram(inner(first, first), inner(second, second), inner(first, second))


class Buffers(local):
    """Memory that a thread uses again for its next tensor: clearing fresh pages would take as long as the merge."""

    def __init__(self) -> None:
        self.held: dict[int, Array] = {}

    def get(self, key: int, size: int) -> Array:
        if key not in self.held or self.held[key].size < size:
            self.held[key] = np.empty(size, np.float32)
        return self.held[key][:size]


def _ties(method: Ties, buffers: Buffers, name: str, deltas: Sequence[Factors], base: Rows) -> TensorMerge:
    size = math.prod(base.shape)
    dense = [delta.dense(buffers.get(i, size)) for i, delta in enumerate(deltas)]
    scratch = buffers.get(len(deltas), size)
    keep = [largest(delta, density, scratch) for delta, density in zip(dense, method.densities, strict=True)]
    return TensorMerge(dense, _elect(method), keep)


def _global_ties(method: Ties, adapters: Adapters) -> Plan:
    def load(adapter: Mapping[str, StoredFactors]) -> Iterator[Factors]:
        return (stored.load() for stored in adapter.values())

    each = zip(adapters.values(), method.densities, strict=True)
    keep = [above(magnitude_threshold(partial(load, adapter), density)) for adapter, density in each]
    return lambda _, deltas, __: TensorMerge(deltas, _elect(method), keep)


def _elect(method: Ties) -> Combine:
    elected = partial(
        ties,
        weights=method.weights,
        density=1.0,
        scale=method.scale,
        election=method.election,
        elect_on=method.elect_on,
        normalize=method.normalize,
    )
    return lambda kept, _: elected(kept)


def _dare(
    method: DareMerge, branches: list[str], name: str, deltas: Sequence[Factors], base: Rows
) -> TensorMerge:
    combine: Callable[..., Array] = dare_linear
    if isinstance(method, DareTies):
        combine = partial(dare_ties, election=method.election, elect_on=method.elect_on)
    shared = {"density": 1.0, "normalize": method.normalize, "scale": method.scale}
    keep = []
    for branch, delta, density in zip(branches, deltas, method.densities, strict=True):
        mask = bernoulli_mask(delta.shape, density, tensor_generator(method.seed, branch, name))
        keep.append(random(delta, density, mask, method.rescale))
    return TensorMerge(deltas, lambda kept, _: combine(kept, method.weights, **shared), keep)
