"""WUDI: the merged delta that disturbs no branch on its own inputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paft.delta.rows import Array
from paft.merge.space import CoreMerge, Matrix, Wide


@dataclass
class Wudi(CoreMerge, name="wudi", title="WUDI", source="Cheng et al. 2025, arXiv:2503.08099"):
    """The delta that disturbs each branch least on the inputs that its own delta reads, in closed form.

    The paper descends sum_i |(t - delta_i) delta_i^T|^2 / |delta_i|^2; its least-squares minimum of smallest norm is
    (sum_i delta_i H_i) (sum_i H_i)^+ with H_i = delta_i^T delta_i / |delta_i|^2.
    """

    decompositions: ClassVar[int] = 2

    def merge_cores(self, cores: Sequence[Matrix]) -> Matrix:
        reads = [core.T @ core / _square(core) for core in cores]
        total = np.sum([core @ read for core, read in zip(cores, reads, strict=True)], axis=0)
        merged: Matrix = total @ _inverse(np.sum(reads, axis=0))
        return merged

    def merge_whole(self, deltas: Sequence[Array]) -> Matrix:
        """In float64: products of deltas have the squares of their singular values."""
        out, width = deltas[0].shape
        if len(deltas) == 1:
            return deltas[0]
        wide = [delta.astype(np.float64) for delta in deltas]
        return self.merge_cores(wide) if len(deltas) * out >= width else of_outputs(wide)


def of_outputs(deltas: Sequence[Wide]) -> Matrix:
    """The same of matrices wider than all are tall together: with D all delta_i / |delta_i| one below the other,
    sum_i H_i = D^T D, and D (D^T D)^+ = (D D^T)^+ D."""
    D = np.concatenate([delta / np.sqrt(_square(delta)) for delta in deltas])
    parts = zip(deltas, np.split(D, len(deltas)), strict=True)
    answers = np.concatenate([delta @ unit.T for delta, unit in parts], 1)
    merged: Matrix = answers @ _inverse(D @ D.T) @ D
    return merged


def _square(delta: Matrix) -> float:
    return max(float(np.vdot(delta, delta)), float(np.finfo(np.float64).tiny))


def _inverse(products: Matrix) -> Matrix:
    """Of what is not 0 in them."""
    inverse: Matrix = np.linalg.pinv(products, rcond=1e-12, hermitian=True)
    return inverse
