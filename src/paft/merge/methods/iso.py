"""Iso-C: the sum of the deltas, all of its directions alike."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paft.merge.space import CoreMerge, Wide


@dataclass
class Iso(CoreMerge, name="iso", title="Iso-C", source="Marczak et al. 2025, arXiv:2502.04959"):
    """The sum of the deltas with all its singular values made their mean: no direction outweighs another.

    In core space, as in whole weights most of the result would lie outside of what the branches have learnt.
    """

    def merge_cores(self, cores: Sequence[Wide]) -> Wide:
        left, sizes, right = np.linalg.svd(sum(cores), full_matrices=False)
        merged: Wide = sizes.mean() * left @ right if sizes.size else left @ right
        return merged
