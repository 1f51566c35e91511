"""Model breadcrumbs: the smallest values and the largest are both left out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from paft.config import Election, ElectOn, Normalize, require
from paft.delta.delta import Delta
from paft.delta.rows import Array, Rows
from paft.merge.combine import added, checked, elected
from paft.merge.method import Adapters, Buffers, Plan, SparseMerge, TensorMerge
from paft.merge.sparsify import without_outliers

PAPER = "Davari and Belilovsky 2023, arXiv:2312.06795"


@dataclass
class Breadcrumbs(SparseMerge, name="breadcrumbs", title="Breadcrumbs", source=PAPER):
    """Of each delta the largest share `density` below its outliers, added."""

    gamma: float = 0.01
    """Share of the largest values that are left out as outliers."""
    normalize: Normalize = Normalize.none
    """What the sum is divided by."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.gamma < 1, "merge.gamma", self.gamma, "in [0, 1)")

    def plan(self, adapters: Adapters) -> Plan:
        buffers = Buffers()

        def trimmed(name: str, deltas: Sequence[Delta], base: Rows) -> TensorMerge:
            size = math.prod(base.shape)
            dense = [delta.dense(buffers.get(i, size)) for i, delta in enumerate(deltas)]
            scratch, each = buffers.get(len(deltas), size), zip(dense, self.densities, strict=True)
            keep = [without_outliers(delta, share, self.gamma, scratch) for delta, share in each]
            return TensorMerge(dense, self.merge_deltas, keep)

        return trimmed

    def merge_deltas(self, deltas: Sequence[Array], base: Array) -> Array:
        return added(checked(deltas, self.weights), self.weights, self.normalize, self.scale)


@dataclass
class BreadcrumbsTies(Breadcrumbs, name="breadcrumbs_ties", title="Breadcrumbs TIES", source=PAPER):
    """The same with a sign elected for each position (mergekit)."""

    election: Election = Election.mass
    """How the sign of a position is elected."""
    elect_on: ElectOn = ElectOn.weighted
    """Whether weights count in the election."""

    def merge_deltas(self, deltas: Sequence[Array], base: Array) -> Array:
        vote = self.election, self.elect_on
        return elected(checked(deltas, self.weights), self.weights, *vote, self.normalize, self.scale)
