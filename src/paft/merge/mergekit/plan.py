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
from paft.merge.mergekit.parameters import KINDS, Keeps, Parameters
from paft.merge.method import Buffers, Combine, TensorMerge, gram_of_deltas
from paft.merge.methods.ram import alone_factors, reinforced
from paft.merge.slerp import Arc, along, delta_arc, full_arc, gram_of_weights
from paft.merge.sparsify import (
    Sparsifier,
    bernoulli_mask,
    everything,
    largest,
    mask_by_rank,
    nothing,
    random,
    rescaled,
    tensor_generator,
    without_outliers,
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
            case "ram" | "ramplus_tl":
                return _reinforced(deltas, values)
        return self._task_vectors(name, deltas, values)

    def _task_vectors(self, name: str, deltas: Sequence[Delta], values: Parameters) -> TensorMerge:
        kind = KINDS[self.method]
        rows: list[Rows] = [*deltas]
        if kind.keeps in (Keeps.largest, Keeps.below_outliers):
            rows = [d.dense(self.buffers.get(i, math.prod(d.shape))) for i, d in enumerate(deltas)]
        keep = [self._keep(number, name, delta, values) for number, delta in enumerate(rows)]
        return TensorMerge(rows, _combine(kind.elects, values), keep)

    def _keep(self, number: int, name: str, delta: Rows, values: Parameters) -> Sparsifier:
        kind, rescale = KINDS[self.method], bool(values.shared["rescale"])
        density = 1.0 if kind.keeps is Keeps.everything else values.of_model["density"][number]
        if density >= 1:
            return everything
        if density <= 0:
            return nothing
        if kind.keeps in (Keeps.largest, Keeps.below_outliers):
            keep = _by_magnitude(kind.keeps, delta, density, values, number)
            return rescaled(delta, keep) if rescale else keep
        generator = tensor_generator(self.seed, str(number), name)
        if kind.keeps is Keeps.by_rank:
            mask = mask_by_rank(delta, density, values.of_model["epsilon"][number], generator)
        else:
            mask = bernoulli_mask(delta.shape, density, generator)
        return random(delta, density, mask, Rescale.l1 if rescale else Rescale.none)


def _by_magnitude(keeps: Keeps, delta: Rows, density: float, values: Parameters, number: int) -> Sparsifier:
    assert isinstance(delta, np.ndarray)
    if keeps is Keeps.largest:
        return largest(delta, density)
    if int(density * delta.size) == 0:  # here mergekit keeps no last value
        return nothing
    return without_outliers(delta, density, values.of_model["gamma"][number])


def _reinforced(deltas: Sequence[Delta], values: Parameters) -> TensorMerge:
    """RAM; plus where the file's method has a strength of the enlargement."""
    settings = {name: float(value) for name, value in values.shared.items()}
    epsilon, ones = settings["epsilon"], [1.0] * len(deltas)
    factors = ones
    if "r" in settings:
        factors = alone_factors(deltas, epsilon, settings["r"], settings["alpha"])
    return TensorMerge(deltas, lambda d, _: reinforced(d, epsilon, ones, factors), [everything] * len(deltas))


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
