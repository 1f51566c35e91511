"""Deltas in safetensors files: factors, a tensor as it is, or one model's tensor minus another's. Without torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Self

import numpy as np

from paft.delta.delta import Dense, Factors, StoredDelta
from paft.delta.rows import FLOATS, PANEL, Array, Bits, Rows, decode, matrix_shape, row_blocks
from paft.files.safetensors import SIZES, Stored


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file as a float32 matrix whose rows are read when they are asked for."""

    path: Path
    stored: Stored

    @property
    def shape(self) -> tuple[int, int]:
        """Of its matrix."""
        return matrix_shape(self.stored.shape)

    def __getitem__(self, rows: slice) -> Array:
        start, stop, _ = rows.indices(self.shape[0])
        return decode(self.bits(start, stop), self.stored.dtype).reshape(-1, self.shape[1])

    def same_bytes(self, other: "StoredTensor") -> bool:
        """Whether another tensor is this one, bit for bit."""
        if (self.stored.dtype, self.shape) != (other.stored.dtype, other.shape):
            return False
        panels = ((rows.start, rows.stop) for rows in row_blocks(self.shape, PANEL))
        return all(np.array_equal(self.bits(*panel), other.bits(*panel)) for panel in panels)

    def bits(self, start: int, stop: int) -> Bits:
        width, dtype = self.shape[1], self.stored.dtype
        count, offset = max(0, stop - start) * width, self.stored.begin + start * width * SIZES[dtype]
        bits = np.fromfile(self.path, FLOATS[dtype], count, offset=offset)
        if bits.size < count:
            raise ValueError(f"{self.path} was cut short while it was read; download or save it again")
        return bits


@dataclass(frozen=True)
class WithRows:
    """A matrix with some of its rows, `indices`, replaced by those of another."""

    matrix: StoredTensor
    rows: StoredTensor
    indices: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape

    def __getitem__(self, rows: slice) -> Array:
        values, (start, stop, _) = self.matrix[rows], rows.indices(self.shape[0])
        for at, index in enumerate(self.indices):
            if start <= index < stop:
                values[index - start] = self.rows[at : at + 1][0]
        return values


@dataclass(frozen=True)
class StoredFactors:
    """`Factors` of one file. With `transposed` the layer stores its weight as [in, out]."""

    path: Path
    A: Stored
    B: Stored
    scaling: float
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Of the stored weight: (out, in), or (in, out) where it is transposed."""
        out, width = self.B.shape[0], self.A.shape[1]
        return (width, out) if self.transposed else (out, width)

    def load(self) -> Factors:
        A, B = (StoredTensor(self.path, factor)[:] for factor in (self.A, self.B))
        return Factors(B.T, A.T, self.scaling) if self.transposed else Factors(A, B, self.scaling)

    def scaled(self, factor: float) -> Self:
        return replace(self, scaling=self.scaling * factor)


@dataclass(frozen=True)
class StoredDifference:
    """scaling * (`tuned` - `base`), a tensor of one model minus the same one of another; without `base` the first."""

    tuned: Rows
    base: Rows | None = None
    scaling: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        out, width = self.tuned.shape
        return out, width

    def __getitem__(self, rows: slice) -> Array:
        tuned = self.tuned[rows]
        return tuned if self.base is None else tuned - self.base[rows]

    def load(self) -> Dense:
        return Dense(self, self.scaling)

    def scaled(self, factor: float) -> Self:
        return replace(self, scaling=self.scaling * factor)


@dataclass(frozen=True)
class StoredSum:
    """The sum of several deltas of one tensor."""

    parts: Sequence[StoredDelta]

    @property
    def shape(self) -> tuple[int, int]:
        return self.parts[0].shape

    def load(self) -> Dense:
        return Dense(_Sum([part.load() for part in self.parts]))

    def scaled(self, factor: float) -> Self:
        return replace(self, parts=[part.scaled(factor) for part in self.parts])


@dataclass(frozen=True)
class _Sum:
    parts: Sequence[Rows]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.parts[0].shape

    def __getitem__(self, rows: slice) -> Array:
        total: Array = reduce(np.add, (part[rows] for part in self.parts))
        return total
