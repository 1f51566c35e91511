"""Spherical interpolation from the SFT delta to the preference delta."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from paft.config import Space, require
from paft.delta.delta import Delta
from paft.delta.rows import Rows
from paft.merge.method import Adapters, Method, Plan, TensorMerge, gram_of_deltas
from paft.merge.slerp import along, delta_arc, full_arc, gram_of_weights
from paft.merge.sparsify import everything


@dataclass
class Slerp(Method, name="slerp", title="SLERP", source="Shoemake 1985, doi:10.1145/325165.325242"):
    """Spherical interpolation from SFT (t = 0) to preference (t = 1)."""

    spaces: ClassVar[tuple[Space, ...]] = tuple(Space)

    t: float = 0.5
    """Where between the two: 0 is SFT, 1 is preference."""
    space: Space = Space.delta

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.t <= 1, "merge.t", self.t, "in [0, 1]")

    @property
    def shares(self) -> list[float]:
        return [1 - self.t, self.t]

    def plan(self, adapters: Adapters) -> Plan:
        return self._of_weights if self.space is Space.full else self._of_deltas

    def _of_deltas(self, name: str, deltas: Sequence[Delta], base: Rows) -> TensorMerge:
        arc = delta_arc(gram_of_deltas(*deltas), self.t)
        ends = arc.first, arc.second
        return TensorMerge(deltas, lambda d, _: along(arc, d), [everything] * 2, arc.linear, ends)

    def _of_weights(self, name: str, deltas: Sequence[Delta], base: Rows) -> TensorMerge:
        arc = full_arc(gram_of_weights(base, *deltas), self.t)
        return TensorMerge(deltas, lambda d, weight: along(arc, d, weight), [everything] * 2, arc.linear)
