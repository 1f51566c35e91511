"""SCE: select positions by variance, weigh deltas by their energy, erase the minority sign."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paft.config import Election, ElectOn, Normalize, require
from paft.delta.delta import Delta
from paft.delta.rows import Array, Rows, blocks_of
from paft.merge.combine import elected
from paft.merge.method import LEAST, Adapters, Method, Plan, TensorMerge, gram_of_adapters
from paft.merge.sparsify import Sparsifier, everything, k_largest, nothing


@dataclass
class Sce(Method, name="sce", title="SCE", source="Wan et al. 2024, arXiv:2408.07990 (FuseChat)"):
    """Average of what agrees in sign, each delta weighted by its squared norm, in each tensor.

    A delta much smaller than the other has nearly no weight: refused where that is below 0.1 over all tensors together,
    a norm of a third of the other's. `norm=branches` gives both the same.
    """

    density: float = 1.0
    """Share of the positions at which the deltas differ that are merged, those of the largest variance; 1 merges all
    (mergekit's select_topk)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.density <= 1, "merge.density", self.density, "in (0, 1]")

    def refuse(self, adapters: Adapters) -> None:
        gram = gram_of_adapters(adapters)
        norms = {branch: square**0.5 for branch, square in zip(adapters, gram, strict=False)}
        weights = shares([gram.first, gram.second])
        if min(weights) < LEAST:
            branch, small = min(zip(adapters, weights, strict=True), key=lambda pair: pair[1])
            stated = " and ".join(f"{norm:.4g} ({name})" for name, norm in norms.items())
            times = max(norms.values()) / (min(norms.values()) or 1)
            raise ValueError(
                f"merge=sce weighs deltas by their squared norms: these are {stated}, one {times:.3g} times the other, "
                f"so the {branch} delta would have a weight of {small:.2g} (it is refused below {LEAST}); "
                "merge.norm=branches gives both one norm"
            )

    def plan(self, adapters: Adapters) -> Plan:
        def plan(name: str, deltas: Sequence[Delta], base: Rows) -> TensorMerge:
            keep = [everything if self.density == 1 else most_varied(deltas, self.density)] * 2
            weights = shares(energies(deltas, keep))
            return TensorMerge(deltas, lambda d, _: averaged(d, weights), keep)

        return plan


def averaged(deltas: Sequence[Array], weights: Sequence[float]) -> Array:
    """sum_i m_i w_i delta_i / sum_i m_i w_i, with m_i where a delta has the sign of their sum."""
    return elected(deltas, weights, Election.mass, ElectOn.unweighted, Normalize.weights, 1.0)


def most_varied(deltas: Sequence[Delta], density: float) -> Sparsifier:
    """What is kept of either delta: of the positions at which they differ a share, those where they differ most. The
    variance of two values is a quarter of their squared difference."""
    first, second = deltas
    apart = first[:] - second[:]
    count = int(np.count_nonzero(apart) * density)
    mask = (k_largest(apart, count) if count else nothing)(slice(None), apart) != 0
    return lambda rows, block: block * mask[rows]


def energies(deltas: Sequence[Delta], keep: Sequence[Sparsifier]) -> list[float]:
    """The sum of squares of what is kept of each delta, in float64."""
    total = np.zeros(len(deltas))
    for rows, blocks in blocks_of(*deltas):
        kept = (k(rows, block).astype(np.float64) for k, block in zip(keep, blocks, strict=True))
        total += [float(np.vdot(block, block)) for block in kept]
    return [float(energy) for energy in total]


def shares(energies: Sequence[float]) -> list[float]:
    """Of their sum; equal where that is 0."""
    total = sum(energies)
    return [energy / total if total else 1 / len(energies) for energy in energies]
