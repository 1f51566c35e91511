"""Reinforced agent merging: what one branch alone changes stays whole, what both change is averaged."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paft.config import require
from paft.delta.delta import Delta
from paft.delta.rows import Array, Rows, blocks_of
from paft.merge.combine import checked
from paft.merge.method import Adapters, Plan, TensorMerge, WeightedMerge
from paft.merge.sparsify import Mask, everything

PAPER = "Yuan et al. 2026, arXiv:2601.13572"


@dataclass
class Ram(WeightedMerge, name="ram", title="RAM", source=PAPER):
    """Positions that one delta alone changes are kept whole, those of both averaged; made for sparse deltas."""

    epsilon: float = 1e-5
    """A magnitude up to this is no change: the threshold of the PAFT paper's sparsity too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.epsilon >= 0, "merge.epsilon", self.epsilon, "at least 0")

    def merge_deltas(self, deltas: Sequence[Array], base: Array) -> Array:
        return self.merged(deltas, [1.0] * len(deltas))

    def merged(self, deltas: Sequence[Array], factors: Sequence[float]) -> Array:
        """With a factor on what each delta alone changes."""
        return reinforced(checked(deltas, self.weights), self.epsilon, self.weights, factors, self.scale)


@dataclass
class RamPlus(Ram, name="ram_plus", title="RAM+", source=PAPER):
    """RAM with what one delta alone changes enlarged, the more of that branch is averaged away.

    In each tensor by 1 + r min(overlap / alone, alpha), of the numbers of positions (mergekit's tensor-local form).
    """

    r: float = 0.1
    """Strength of the enlargement."""
    alpha: float = 0.2
    """The most that overlap / alone counts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.r >= 0, "merge.r", self.r, "at least 0")
        require(self.alpha >= 0, "merge.alpha", self.alpha, "at least 0")

    def plan(self, adapters: Adapters) -> Plan:
        def plan(name: str, deltas: Sequence[Delta], base: Rows) -> TensorMerge:
            factors = alone_factors(deltas, self.epsilon, self.r, self.alpha)
            return TensorMerge(deltas, lambda d, _: self.merged(d, factors), [everything] * len(deltas))

        return plan


def reinforced(
    deltas: Sequence[Array],
    epsilon: float,
    weights: Sequence[float],
    factors: Sequence[float],
    scale: float = 1.0,
) -> Array:
    """What one delta alone changes by more than `epsilon`, times its factor, and the mean of what several change."""
    changed = _changed(deltas, epsilon)
    count = sum(mask.astype(np.float32) for mask in changed)
    merged = np.zeros_like(deltas[0])
    for delta, mask, weight, factor in zip(deltas, changed, weights, factors, strict=True):
        share = np.where(count > 1, np.float32(weight) / np.maximum(count, 1), np.float32(weight * factor))
        merged += share * mask * delta
    merged *= np.float32(scale)
    return merged


def alone_factors(deltas: Sequence[Rows], epsilon: float, r: float, alpha: float) -> list[float]:
    """1 + r min(overlap / alone, alpha) of each delta of a tensor, by the numbers of its positions."""
    shared, alone = np.zeros(len(deltas)), np.zeros(len(deltas))
    for _, blocks in blocks_of(*deltas):
        changed = np.array(_changed(blocks, epsilon))
        overlap = changed.sum(0) > 1
        shared += (changed & overlap).sum((1, 2))
        alone += (changed & ~overlap).sum((1, 2))
    return (1 + r * np.minimum(shared / np.maximum(alone, epsilon or 1), alpha)).tolist()


def _changed(deltas: Sequence[Array], epsilon: float) -> list[Mask]:
    return [np.abs(delta) > epsilon for delta in deltas]
