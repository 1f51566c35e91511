"""What a branch adds to one tensor of the base: low-rank factors, or rows of any other origin. Without torch.

A tensor of any shape counts as a matrix (`paft.delta.rows.matrix_shape`), so biases, norms and embeddings change like
linear layers. A `StoredDelta` is still in its files, a `Delta` gives float32 rows.
"""

from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

from paft.delta.rows import PANEL, Array, Rows, blocks_of, row_blocks


class Delta(Rows, Protocol):
    """The change of one tensor as a float32 matrix [out, in]."""

    def dense(self, buffer: Array) -> Array:
        """All rows, in an array [out * in]."""


class StoredDelta(Protocol):
    """A delta that is still in its files: what it is made of was checked, and is read when it is needed."""

    @property
    def shape(self) -> tuple[int, int]:
        """Of its matrix: (out, in)."""

    def load(self) -> Delta:
        """Called from several threads, several times in one merge."""

    def scaled(self, factor: float) -> Self:
        """The same delta times a number."""


@dataclass(frozen=True)
class Factors:
    """The delta scaling * B @ A of one linear layer: float32 A [rank, in] and B [out, rank]."""

    A: Array
    B: Array
    scaling: float

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)"""
        return self.B.shape[0], self.A.shape[1]

    def __getitem__(self, rows: slice) -> Array:
        """Some rows of the delta, computed now."""
        block: Array = self.B[rows] @ self.A
        block *= self.scaling
        return block

    def dense(self, buffer: Array) -> Array:
        """The whole delta, in an array [out * in]."""
        matrix = buffer.reshape(self.shape)
        for rows in row_blocks(self.shape, PANEL):
            np.matmul(self.B[rows], self.A, out=matrix[rows])
            matrix[rows] *= self.scaling
        return matrix


@dataclass(frozen=True)
class Dense:
    """A delta by its rows: an array in memory, or rows that are read or computed when they are asked for."""

    rows: Rows
    scaling: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)"""
        out, width = self.rows.shape
        return out, width

    def __getitem__(self, rows: slice) -> Array:
        block = self.rows[rows]
        return block if self.scaling == 1 else block * np.float32(self.scaling)

    def dense(self, buffer: Array) -> Array:
        """The whole delta, in an array [out * in]."""
        matrix = buffer.reshape(self.shape)
        for rows in row_blocks(self.shape, PANEL):
            matrix[rows] = self[rows]
        return matrix


def zero_delta(shape: tuple[int, ...]) -> Factors:
    """A delta of rank 0: of a tensor that a branch leaves alone."""
    out, width = shape
    return Factors(np.zeros((0, width), np.float32), np.zeros((out, 0), np.float32), 1.0)


def is_zero(delta: Delta) -> bool:
    """Whether it is `zero_delta`."""
    return isinstance(delta, Factors) and not len(delta.A)


def inner(a: Delta, b: Delta) -> float:
    """Sum of products over all elements, in float64.

    Of factors without forming a delta: <B1 A1, B2 A2> = sum of (B1^T B2) * (A1 A2^T).
    """
    if not (isinstance(a, Factors) and isinstance(b, Factors)):
        wide = ((x.astype(np.float64), y.astype(np.float64)) for _, (x, y) in blocks_of(a, b))
        return sum(float(np.vdot(x, y)) for x, y in wide)
    over_out = a.B.T.astype(np.float64) @ b.B.astype(np.float64)
    over_in = a.A.astype(np.float64) @ b.A.T.astype(np.float64)
    return a.scaling * b.scaling * float(np.vdot(over_out, over_in))
