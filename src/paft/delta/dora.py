"""The delta of a DoRA layer (Liu et al. 2024, arXiv:2402.09353): magnitude * V / ||V|| - W with V = W + scaling * B A.

A norm is one output's: of a row, or of a column where the base stores [in, out], as in Conv1D and embeddings.
"""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from paft.delta.delta import Dense, Factors
from paft.delta.rows import Array, Rows, blocks_of
from paft.delta.stored import StoredFactors, StoredTensor


@dataclass(frozen=True)
class StoredDora:
    """Factors, the magnitude [outputs] and the base's weight that they turn."""

    base: StoredTensor
    factors: StoredFactors
    magnitude: StoredTensor
    scaling: float = 1.0
    """Of the delta."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.factors.shape

    def load(self) -> Dense:
        factors, magnitude = self.factors.load(), self.magnitude[:].reshape(-1)
        norms = _column_norms(self.base, factors) if self.factors.transposed else None
        return Dense(_Turned(self.base, factors, magnitude, norms), self.scaling)

    def scaled(self, factor: float) -> Self:
        return replace(self, scaling=self.scaling * factor)


@dataclass(frozen=True)
class _Turned:
    """The rows of the delta, computed from the base's when they are asked for."""

    base: Rows
    factors: Factors
    magnitude: Array
    column_norms: Array | None

    @property
    def shape(self) -> tuple[int, int]:
        return self.factors.shape

    def __getitem__(self, rows: slice) -> Array:
        base = self.base[rows]
        turned = base + self.factors[rows]
        if self.column_norms is not None:
            turned *= _gain(self.magnitude, self.column_norms)
        else:
            turned *= _gain(self.magnitude[rows], np.linalg.norm(turned, axis=1))[:, None]
        turned -= base
        return turned


def _column_norms(base: Rows, factors: Factors) -> Array:
    squares = np.zeros(factors.shape[1])
    for _, (weight, delta) in blocks_of(base, factors):
        squares += np.square(weight + delta, dtype=np.float64).sum(axis=0)
    return np.sqrt(squares).astype(np.float32)


def _gain(magnitude: Array, norms: Array) -> Array:
    """magnitude / norm, and 0 where all values are 0."""
    gain: Array = np.divide(magnitude, norms, out=np.zeros_like(magnitude), where=norms > 0)
    return gain
