"""Iso-C: the sum of the deltas, all of its directions alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paft.merge.space import CoreMerge, Matrix


@dataclass
class Iso(CoreMerge, name="iso", title="Iso-C", source="Marczak et al. 2025, arXiv:2502.04959"):
    """The sum of the deltas with all its singular values made their mean: no direction outweighs another.

    Of LoRA deltas in core space, as in whole weights most of the result would lie outside of what the branches have
    learnt. Whole deltas have all directions of the weights.
    """

    decompositions: ClassVar[int] = 1

    def merge_cores(self, cores: Sequence[Matrix]) -> Matrix:
        left, sizes, right = np.linalg.svd(np.sum(cores, axis=0), full_matrices=False)
        merged: Matrix = sizes.mean() * left @ right if sizes.size else left @ right
        return merged
