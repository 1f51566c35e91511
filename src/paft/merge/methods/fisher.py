"""Fisher merging: each value weighs as much as its branch's loss depends on it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paft.config import Statistic, require
from paft.delta.delta import Delta
from paft.delta.rows import Array, Rows, blocks_of
from paft.merge.method import Adapters, Plan, TensorMerge
from paft.merge.sparsify import everything
from paft.merge.statistics import DataMerge, Measured, lone


@dataclass
class Fisher(DataMerge, name="fisher", title="Fisher", source="Matena and Raffel 2022, arXiv:2111.09832"):
    """Average of the deltas, each value weighted by the diagonal Fisher information of its branch's own rows.

    sum_i w_i F_i delta_i / sum_i w_i F_i, where F_i is the mean over rows of the squared gradient of a row's answer's
    log-likelihood at the branch's own weights.
    """

    needs: ClassVar[Statistic] = Statistic.fisher

    normalize: bool = True
    """Divide each branch's F by its own root mean square over all tensors, else both by that of the two together."""
    floor: float = 1e-6
    """Added to F where its root mean square is 1: what no row depends on is then a plain average."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.floor > 0, "merge.floor", self.floor, "positive")

    def plan_by(self, adapters: Adapters, measured: Sequence[Measured]) -> Plan:
        sizes = [root_mean_square(fishers) for fishers in measured]
        if not self.normalize:
            sizes = [math.sqrt(sum(size**2 for size in sizes) / len(sizes))] * len(sizes)

        def plan(name: str, deltas: Sequence[Delta], base: Rows) -> TensorMerge:
            fishers = [fisher[name] for fisher in measured if name in fisher]
            if len(fishers) < len(deltas):
                return lone(deltas, self.scale)
            keep = [everything] * (2 * len(deltas))
            return TensorMerge([*deltas, *fishers], lambda rows, _: self._averaged(rows, sizes), keep)

        return plan

    def _averaged(self, rows: Sequence[Array], sizes: Sequence[float]) -> Array:
        deltas, fishers = rows[: len(sizes)], rows[len(sizes) :]
        weights = [
            np.float32(weight) * (fisher / np.float32(size or 1) + np.float32(self.floor))
            for weight, fisher, size in zip(self.weights, fishers, sizes, strict=True)
        ]
        weighted = [weight * delta for weight, delta in zip(weights, deltas, strict=True)]
        merged: Array = np.sum(weighted, axis=0) / np.sum(weights, axis=0)
        merged *= np.float32(self.scale)
        return merged


def root_mean_square(tensors: Mapping[str, Rows]) -> float:
    """Over all values of all tensors together, in float64."""
    squares, count = 0.0, 0
    for tensor in tensors.values():
        for _, (block,) in blocks_of(tensor):
            wide = block.reshape(-1).astype(np.float64)
            squares, count = squares + float(wide @ wide), count + wide.size
    return math.sqrt(squares / count) if count else 0.0
