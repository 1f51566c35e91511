"""A recipe as a plan: what happens to one tensor, by the parameters that its file sets for it.

mergekit works on whole weights, and so does what is computed here: models are given as differences from the folder
that is rewritten, and the base's rows are at hand where a formula needs them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from paft.config import Election, ElectOn, Normalize, Rescale
from paft.delta.delta import Delta
from paft.delta.rows import Rows
from paft.merge.combine import added, elected
from paft.merge.mergekit.parameters import KINDS, Parameters
from paft.merge.method import Buffers, Combine, TensorMerge, gram_of_deltas
from paft.merge.slerp import Arc, along, delta_arc, full_arc, gram_of_weights
from paft.merge.sparsify import (
    Sparsifier,
    bernoulli_mask,
    everything,
    largest,
    nothing,
    random,
    rescaled,
    tensor_generator,
)


@dataclass(frozen=True)
class RecipePlan:
    """How the tensors of a recipe are merged; called as a `Plan`, from several threads."""

    method: str
    parameters: Mapping[str, Parameters]
    of_weights: bool
    """Whether there is no base: nuslerp then turns whole weights."""
    seed: int
    buffers: Buffers = field(default_factory=Buffers)

    def __call__(self, name: str, deltas: Sequence[Delta], base: Rows) -> TensorMerge:
        values = self.parameters[name]
        match self.method:
            case "linear":
                return TensorMerge(deltas, _linear(values), [everything] * len(deltas))
            case "slerp":
                return _turned(
                    deltas, full_arc(gram_of_weights(base, *deltas), float(values.shared["t"])), full=True
                )
            case "nuslerp":
                gram = gram_of_weights(base, *deltas) if self.of_weights else gram_of_deltas(*deltas)
                return _turned(
                    deltas, delta_arc(gram, _share(values.of_model["weight"])), full=self.of_weights
                )
        return self._task_vectors(name, deltas, values)

    def _task_vectors(self, name: str, deltas: Sequence[Delta], values: Parameters) -> TensorMerge:
        kind, shared = KINDS[self.method], values.shared
        rows: list[Rows] = [*deltas]
        if kind.trims:
            rows = [d.dense(self.buffers.get(i, math.prod(d.shape))) for i, d in enumerate(deltas)]
        densities = values.of_model["density"] if kind.trims or kind.drops else [1.0] * len(deltas)
        each = enumerate(zip(rows, densities, strict=True))
        keep = [self._keep(i, name, delta, density, bool(shared["rescale"])) for i, (delta, density) in each]
        return TensorMerge(rows, _combine(kind.elects, values), keep)

    def _keep(self, number: int, name: str, delta: Rows, density: float, rescale: bool) -> Sparsifier:
        if density >= 1:
            return everything
        if density <= 0:
            return nothing
        if KINDS[self.method].trims:
            assert isinstance(delta, np.ndarray)
            keep = largest(delta, density)
            return rescaled(delta, keep) if rescale else keep
        mask = bernoulli_mask(delta.shape, density, tensor_generator(self.seed, str(number), name))
        return random(delta, density, mask, Rescale.l1 if rescale else Rescale.none)


def _combine(elects: bool, values: Parameters) -> Combine:
    weights, scale = values.of_model["weight"], float(values.shared["lambda"])
    normalize = Normalize.weights if values.shared["normalize"] else Normalize.none
    if elects:
        return lambda deltas, _: elected(deltas, weights, Election.mass, ElectOn.weighted, normalize, scale)
    return lambda deltas, _: added(deltas, weights, normalize, scale)


def _linear(values: Parameters) -> Combine:
    """sum of w (base + delta), divided by the sum of w where they are normalized, minus the base."""
    weights, total = values.of_model["weight"], sum(values.of_model["weight"])
    if values.shared["normalize"]:
        return lambda deltas, _: added(deltas, [weight / total for weight in weights], Normalize.none, 1.0)
    return lambda deltas, base: added(deltas, weights, Normalize.none, 1.0) + (total - 1) * base


def _turned(deltas: Sequence[Delta], arc: Arc, *, full: bool) -> TensorMerge:
    return TensorMerge(
        deltas, lambda d, base: along(arc, d, base if full else None), [everything] * 2, arc.linear
    )


def _share(weights: Sequence[float]) -> float:
    """Of the second of two weights; half where they cancel."""
    total = sum(weights)
    return 0.5 if abs(total) < 1e-6 else weights[1] / total
