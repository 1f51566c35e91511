"""Merges of whole weights at once, by the pure functions of arrays: what a merge in blocks of rows is compared with."""

from collections.abc import Mapping, Sequence

import numpy as np

from paft.config import MergeConfig, Scope, Space
from paft.delta.delta import Delta
from paft.delta.rows import Array
from paft.merge.method import gram_of_deltas
from paft.merge.methods import (
    DareTies,
    Linear,
    Slerp,
    TaskArithmetic,
    Ties,
    dare_ties,
    linear,
    task_arithmetic,
    ties,
)
from paft.merge.slerp import along, delta_arc, full_arc, gram_of
from paft.merge.sparsify import tensor_generator, trim

Branches = Mapping[str, Mapping[str, Delta]]
"""Branch -> tensor -> its delta; what is not there is zero."""

WRITTEN_OUT = [
    Linear(weights=[0.7, 0.3]),
    TaskArithmetic(scale=0.5),
    Slerp(t=0.3),
    Slerp(t=0.3, space=Space.full),
    Ties(weights=[0.6, 0.9], density=0.3, preference_density=0.7),
    Ties(weights=[0.6, 0.9], density=0.3, preference_density=0.01),
    Ties(density=0.2, scope=Scope.all),
    DareTies(density=0.4, seed=7),
]
"""The merges that `merged_delta` writes out."""


def merged_delta(
    method: MergeConfig, name: str, weight: Array, deltas: Sequence[Delta], branches: Branches
) -> Array:
    """Of one tensor [out, in], whole; `branches` are what a global threshold is of."""
    each = [delta[:] for delta in deltas]
    match method:
        case Linear():
            return linear(each, method.weights)
        case TaskArithmetic():
            return task_arithmetic(each, method.weights, scale=method.scale)
        case Slerp(space=Space.delta):
            return along(delta_arc(gram_of_deltas(*deltas), method.t), each)
        case Slerp():
            return slerp_full(weight, each, method.t)
        case Ties(scope=Scope.all):
            limits = [threshold(branch, method.density) for branch in branches.values()]
            kept = [trim(delta, limit) for delta, limit in zip(each, limits, strict=True)]
            return ties(kept, method.weights, density=1)
        case Ties():
            return ties(each, method.weights, density=method.densities, normalize=method.normalize)
        case DareTies():
            drawn = [tensor_generator(method.seed, branch, name) for branch in branches]
            return dare_ties(each, method.weights, density=method.density, generators=drawn)
    raise NotImplementedError(method.name)


def threshold(branch: Mapping[str, Delta], density: float) -> float:
    """The largest absolute value that is not among the largest share of all tensors that change, by a sort."""
    values = np.sort(np.abs(np.concatenate([d.ravel() for d in (d[:] for d in branch.values()) if d.any()])))
    return float(values[-int(values.size * density) - 1])


def slerp_full(base: Array, deltas: Sequence[Array], t: float) -> Array:
    """The point at `t` between the weights base + delta, as a merged delta: mergekit's slerp."""
    first, second = deltas
    return along(full_arc(gram_of(base + first, base + second), t), deltas, base)
