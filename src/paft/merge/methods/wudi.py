"""WUDI: the merged delta that disturbs no branch on its own inputs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paft.merge.space import CoreMerge, Wide


@dataclass
class Wudi(CoreMerge, name="wudi", title="WUDI", source="Cheng et al. 2025, arXiv:2503.08099"):
    """The delta that disturbs each branch least on the inputs that its own delta reads, in closed form.

    The paper descends sum_i |(t - delta_i) delta_i^T|^2 / |delta_i|^2; its least-squares minimum of smallest norm is
    (sum_i delta_i H_i) (sum_i H_i)^+ with H_i = delta_i^T delta_i / |delta_i|^2.
    """

    def merge_cores(self, cores: Sequence[Wide]) -> Wide:
        reads = [core.T @ core / max(float(np.vdot(core, core)), np.finfo(np.float64).tiny) for core in cores]
        total = sum(core @ read for core, read in zip(cores, reads, strict=True))
        merged: Wide = total @ np.linalg.pinv(sum(reads), rcond=1e-12, hermitian=True)
        return merged
