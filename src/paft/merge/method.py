"""What a merge method is: options as a dataclass, and what happens to one tensor.

A method first looks at whole deltas, for a threshold, a mask or an angle, and then merges any block of their rows. A
new one is a class in a file of `paft.merge.methods`:

    @dataclass
    class Larger(Method, name="larger", title="Larger", source="..."):
        \"""Of either delta's values the larger one.\"""

        def merge_deltas(self, deltas: Sequence[Array], base: Array) -> Array:
            first, second = deltas
            return np.where(abs(first) > abs(second), first, second)
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from threading import local

import numpy as np

from paft.config import MergeConfig, require
from paft.config.checks import UNLESS_DEFAULT, incidental
from paft.delta.delta import Delta, Factors, StoredDelta, inner, zero_delta
from paft.delta.rows import Array, Rows, blocks_of
from paft.merge.slerp import Gram, gram_of
from paft.merge.sparsify import Sparsifier, everything

Adapters = Mapping[str, Mapping[str, StoredDelta]]
"""Branch name -> tensor name -> its delta."""
Combine = Callable[[Sequence[Array], Array], Array]
"""(the same rows of every sparse delta, of the base) -> those rows of the merged delta."""


@dataclass(frozen=True)
class TensorMerge:
    """How the rows of one tensor are merged."""

    deltas: Sequence[Rows]
    """The branches', and behind them what else `combine` needs rows of."""
    combine: Combine
    sparsify: Sequence[Sparsifier]
    linear: bool | None = None
    """Whether slerp is a straight line here; None for the other methods."""
    coefficients: Sequence[float] | None = None
    """Where the merged delta is a sum of the deltas, each times a number: these; so it has the sum of their ranks."""

    def merge(self, rows: slice, deltas: Sequence[Array], base: Array) -> Array:
        kept = [keep(rows, delta) for keep, delta in zip(self.sparsify, deltas, strict=True)]
        return self.combine(kept, base)


LEAST = 0.1
"""A branch, or the mean of both, of which a method would leave less than this share is as good as not merged."""

Plan = Callable[[str, Sequence[Delta], Rows], TensorMerge]
"""(tensor name, one delta per branch, base weight) -> how they are merged. Called from several threads."""


@dataclass
class Method(MergeConfig):
    """A merge method. Most say `merge_deltas`, some `sparsifier`; those that need more say `plan`."""

    @property
    def shares(self) -> list[float]:
        """The weights of SFT and preference, for reports; empty where a method has none."""
        return []

    def informed(self, inputs: Mapping[str, Path]) -> "Method":
        """The method with what stages of its own have measured, whose folders are among the `inputs` of its merge."""
        return self

    def refuse(self, adapters: Adapters) -> None:
        """Raise `ValueError`, with the number that says it, for two deltas that this method would make nothing of.

        They have been brought to one norm by then, where that is asked for.
        """

    def plan(self, adapters: Adapters) -> Plan:
        """How each tensor is merged; `adapters` are for methods that look at all of them first."""
        branches = list(adapters)

        def plan(name: str, deltas: Sequence[Delta], base: Rows) -> TensorMerge:
            each = zip(branches, deltas, strict=True)
            keep = [self.sparsifier(i, branch, name, delta) for i, (branch, delta) in enumerate(each)]
            return TensorMerge(deltas, self.merge_deltas, keep, coefficients=self.coefficients)

        return plan

    @property
    def coefficients(self) -> list[float] | None:
        """The factors of SFT and preference in a method that only adds them; None for any other."""
        return None

    def sparsifier(self, number: int, branch: str, name: str, delta: Delta) -> Sparsifier:
        """What is kept of one branch's delta (0: SFT, 1: preference) of the tensor `name`."""
        return everything

    def merge_deltas(self, deltas: Sequence[Array], base: Array) -> Array:
        """The merged delta of some rows, float32: of what is kept of each delta, and of the base's weight."""
        raise NotImplementedError(f"{type(self).__name__} must say how it combines deltas")


@dataclass
class WeightedMerge(Method):
    """A method with a weight for each branch, and one factor on the merged delta."""

    weights: list[float] = field(default_factory=lambda: [1.0, 1.0])
    """Of SFT and preference."""
    scale: float = 1.0
    """Factor on the merged delta (lambda in the task-arithmetic and TIES papers)."""
    sft_weight: float | None = incidental(None)
    """Another way to write the first of `weights`, for a search over numbers; null leaves it."""
    preference_weight: float | None = incidental(None)
    """The same for the second."""
    weights_by: dict[str, list[float]] = field(default_factory=dict, metadata=UNLESS_DEFAULT)
    """Weights of some tensors alone: {pattern: [sft, preference]}, as {q_proj: [1, 0.5], "layers.0\\.": [0, 1]}. The
    first pattern found in a tensor's name counts, in regular expressions; `weights` are those of all others."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for pattern, weights in self.weights_by.items():
            name = f"merge.weights_by.{pattern}"
            require(len(weights) == 2, name, weights, "two numbers: [sft, preference]")
            require(
                _is_pattern(pattern), "merge.weights_by", pattern, "regular expressions for names of tensors"
            )
        require(len(self.weights) == 2, "merge.weights", self.weights, "two numbers: [sft, preference]")
        own = (self.sft_weight, self.preference_weight)
        self.weights = [w if given is None else given for w, given in zip(self.weights, own, strict=True)]

    @property
    def shares(self) -> list[float]:
        return list(self.weights)


@dataclass
class SparseMerge(WeightedMerge):
    """A weighted method that keeps a share of each delta."""

    density: float = 0.5
    """Share of each delta that is kept; 1 keeps everything."""
    sft_density: float | None = None
    """Density of the SFT delta alone; null uses `density`."""
    preference_density: float | None = None
    """The same of the preference delta."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("density", "sft_density", "preference_density"):
            value = getattr(self, name)
            require(value is None or 0 < value <= 1, f"merge.{name}", value, "in (0, 1]")

    @property
    def densities(self) -> list[float]:
        own = (self.sft_density, self.preference_density)
        return [self.density if value is None else value for value in own]


def gram_of_deltas(first: Delta, second: Delta) -> Gram:
    """`gram_of` two deltas; where both are factors without computing them."""
    if not (isinstance(first, Factors) and isinstance(second, Factors)):
        grams = (gram_of(one, other) for _, (one, other) in blocks_of(first, second))
        return reduce(Gram.add, grams, Gram())
    return Gram(inner(first, first), inner(second, second), inner(first, second))


def gram_of_adapters(adapters: Adapters) -> Gram:
    """`gram_of_deltas` over all tensors of two adapters together; what one does not change is zero there."""
    first, second = adapters.values()
    total = Gram()
    for name, stored in {**first, **second}.items():
        zero = zero_delta(stored.shape)
        one, other = (adapter[name].load() if name in adapter else zero for adapter in (first, second))
        total = total.add(gram_of_deltas(one, other))
    return total


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


class Buffers(local):
    """Memory that a thread uses again for its next tensor: clearing fresh pages would take as long as the merge."""

    def __init__(self) -> None:
        self.held: dict[int, Array] = {}

    def get(self, key: int, size: int) -> Array:
        if key not in self.held or self.held[key].size < size:
            self.held[key] = np.empty(size, np.float32)
        return self.held[key][:size]
