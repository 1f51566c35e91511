"""TSV-M: singular vectors of each delta, made orthogonal between them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paft.config import require
from paft.delta.rows import Array
from paft.merge.space import CoreMerge, Matrix


@dataclass
class Tsv(CoreMerge, name="tsv", title="TSV-M", source="Gargiulo et al. 2025, arXiv:2412.00081"):
    """Task singular vectors, made orthogonal between the branches (Procrustes) before they are added."""

    decompositions: ClassVar[int] = 4

    top: int | None = None
    """Singular values kept of each delta; null: all of LoRA deltas, and of others as many as both have room for, half
    of a matrix's smaller side (the paper's 1/T). Core-space TSV keeps half of both ranks together."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.top is None or self.top > 0, "merge.top", self.top, "positive or null")

    def merge_cores(self, cores: Sequence[Matrix]) -> Matrix:
        return without_interference(cores, self.top)

    def merge_whole(self, deltas: Sequence[Array]) -> Matrix:
        if len(deltas) == 1 and self.top is None:
            return deltas[0]
        room = max(1, min(deltas[0].shape) // len(deltas))
        return without_interference(deltas, self.top or room)


def without_interference(deltas: Sequence[Matrix], top: int | None) -> Matrix:
    """Algorithm 1 of the paper, with the first `top` singular triplets of each, or all."""
    lefts, sizes, rights = zip(*(_triplets(delta, top) for delta in deltas), strict=True)
    left, right = orthogonal(np.concatenate(lefts, 1)), orthogonal(np.concatenate(rights, 0))
    merged: Matrix = left * np.concatenate(sizes) @ right
    return merged


def _triplets(delta: Matrix, top: int | None) -> tuple[Matrix, Matrix, Matrix]:
    """Left vectors, singular values and right vectors, without those that are rounding; no view of the others."""
    left, sizes, right = np.linalg.svd(delta, full_matrices=False)
    kept = min(top or sizes.size, rank_of(sizes))
    return left[:, :kept].copy(), sizes[:kept], right[:kept].copy()


def orthogonal(vectors: Matrix) -> Matrix:
    """The nearest matrix with orthonormal rows or columns."""
    left, _, right = np.linalg.svd(vectors, full_matrices=False)
    nearest: Matrix = left @ right
    return nearest


def rank_of(sizes: Matrix) -> int:
    """How many singular values are more than rounding."""
    rounding = 1e-10 if sizes.dtype == np.float64 else 1e-6
    return int(np.count_nonzero(sizes > rounding * sizes.max(initial=0.0)))
