"""TSV-M: singular vectors of each delta, made orthogonal between them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paft.config import require
from paft.merge.space import CoreMerge, Wide


@dataclass
class Tsv(CoreMerge, name="tsv", title="TSV-M", source="Gargiulo et al. 2025, arXiv:2412.00081"):
    """Task singular vectors, made orthogonal between the branches (Procrustes) before they are added."""

    top: int | None = None
    """Singular values kept of each delta; null: all. Core-space TSV keeps half of both ranks together."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.top is None or self.top > 0, "merge.top", self.top, "positive or null")

    def merge_cores(self, cores: Sequence[Wide]) -> Wide:
        lefts, sizes, rights = zip(*(np.linalg.svd(core, full_matrices=False) for core in cores), strict=True)
        kept = [min(self.top or size.size, rank_of(size)) for size in sizes]
        left = orthogonal(np.concatenate([u[:, :k] for u, k in zip(lefts, kept, strict=True)], 1))
        right = orthogonal(np.concatenate([v[:k] for v, k in zip(rights, kept, strict=True)], 0))
        merged: Wide = left * np.concatenate([s[:k] for s, k in zip(sizes, kept, strict=True)]) @ right
        return merged


def orthogonal(vectors: Wide) -> Wide:
    """The nearest matrix with orthonormal rows or columns."""
    left, _, right = np.linalg.svd(vectors, full_matrices=False)
    nearest: Wide = left @ right
    return nearest


def rank_of(sizes: Wide) -> int:
    """How many singular values of a core matrix are more than rounding."""
    return int(np.count_nonzero(sizes > 1e-10 * sizes.max(initial=0.0)))
