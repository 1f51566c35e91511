"""TIES: trim by magnitude, elect signs, average what agrees."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from paft.config import Combine, Election, ElectOn, Normalize, Scope, Space
from paft.config.checks import UNLESS_DEFAULT
from paft.delta.delta import Delta, StoredDelta
from paft.delta.rows import Array, Rows
from paft.merge.combine import checked, choice, each_density, elected, largest_elected
from paft.merge.method import Adapters, Buffers, Plan, SparseMerge, TensorMerge
from paft.merge.sparsify import above, largest, magnitude_threshold


@dataclass
class Ties(SparseMerge, name="ties", title="TIES", source="Yadav et al. 2023, arXiv:2306.01708"):
    """Trim by magnitude, elect signs, average what agrees."""

    election: Election = Election.mass
    """How the sign of a position is elected."""
    elect_on: ElectOn = ElectOn.weighted
    """Whether weights count in the election."""
    normalize: Normalize = Normalize.weights
    """What the sum of what agrees is divided by."""
    combine: Combine = field(default=Combine.mean, metadata=UNLESS_DEFAULT)
    scope: Scope = Scope.tensor
    """Whether each tensor keeps its largest share, or the adapter as a whole."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.combine is Combine.sum:
            self.combine, self.normalize = Combine.mean, Normalize.none
        if self.scope is Scope.all and self.space is not Space.delta:
            raise ValueError(
                f"merge.scope=global compares elements of the deltas, got merge.space={self.space.value!r}; "
                "set merge.scope=tensor or merge.space=delta"
            )

    def plan(self, adapters: Adapters) -> Plan:
        return (
            partial(self._trimmed, Buffers()) if self.scope is Scope.tensor else self._of_adapters(adapters)
        )

    def _trimmed(self, buffers: Buffers, name: str, deltas: Sequence[Delta], base: Rows) -> TensorMerge:
        size = math.prod(base.shape)
        dense = [delta.dense(buffers.get(i, size)) for i, delta in enumerate(deltas)]
        scratch = buffers.get(len(deltas), size)
        keep = [largest(delta, share, scratch) for delta, share in zip(dense, self.densities, strict=True)]
        return TensorMerge(dense, self.merge_deltas, keep)

    def _of_adapters(self, adapters: Adapters) -> Plan:
        def load(adapter: Mapping[str, StoredDelta]) -> Iterator[Delta]:
            return (stored.load() for stored in adapter.values())

        each = zip(adapters.values(), self.densities, strict=True)
        keep = [above(magnitude_threshold(partial(load, adapter), share)) for adapter, share in each]
        return lambda _, deltas, __: TensorMerge(deltas, self.merge_deltas, keep)

    def merge_deltas(self, deltas: Sequence[Array], base: Array) -> Array:
        vote = self.election, self.elect_on
        deltas = checked(deltas, self.weights)
        if self.combine is Combine.max:
            return largest_elected(deltas, self.weights, *vote, self.scale)
        return elected(deltas, self.weights, *vote, self.normalize, self.scale)


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
    deltas = checked(deltas, weights)
    kept = [
        magnitude(delta, share) for delta, share in zip(deltas, each_density(density, deltas), strict=True)
    ]
    vote = choice(Election, election), choice(ElectOn, elect_on)
    return elected(kept, weights, *vote, choice(Normalize, normalize), scale)


def magnitude(delta: Array, density: float) -> Array:
    """`sparsify.largest` of a whole delta."""
    return largest(delta, density)(slice(None), delta)
