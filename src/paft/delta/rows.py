"""Matrices as rows: blocks that stay in a core's cache, and stored bits as float32 and back. Without torch.

Arrays hold the stored bits, bfloat16 as uint16; `decode` and `encode` turn them into float32 and back.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Bits = NDArray[Any]

FLOATS = {"F16": np.float16, "BF16": np.uint16, "F32": np.float32, "F64": np.float64}
"""The types a delta can be added to, as arrays."""
LIMITS = {"F16": 65520.0, "BF16": (2 - 2**-8) * 2.0**127, "F32": math.inf, "F64": math.inf}
"""The least magnitude that is rounded to infinity."""
BLOCK = 2**17
"""Elements worked on at a time: the arrays of one step stay in a core's cache."""
PANEL = 2**21
"""Elements of a delta computed at a time."""


class Rows(Protocol):
    """A matrix [out, in] whose rows are in memory, or are read or computed when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __getitem__(self, rows: slice) -> Array: ...


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """(rows, columns) of a tensor as a matrix: [n] is one row, [a, b, c] is [a, b * c], a number is 1 by 1."""
    if len(shape) < 2:
        return 1, math.prod(shape)
    return shape[0], math.prod(shape[1:])


def row_blocks(shape: Sequence[int], size: int = BLOCK) -> Iterator[slice]:
    """The rows of a matrix in order, about `size` elements at a time, however many threads there are."""
    height = max(1, size // max(1, shape[1]))
    return (slice(i, min(i + height, shape[0])) for i in range(0, shape[0], height))


def blocks_of(*matrices: Rows) -> Iterator[tuple[slice, list[Array]]]:
    """Every block of rows, and these rows of each of some matrices of one shape.

    The matrices are asked for a taller panel at a time: thin products of low-rank factors are slow.
    """
    for panel in row_blocks(matrices[0].shape, PANEL):
        parts = [matrix[panel] for matrix in matrices]
        for rows in row_blocks(parts[0].shape):
            yield slice(panel.start + rows.start, panel.start + rows.stop), [part[rows] for part in parts]


def decode(bits: Bits, dtype: str) -> Array:
    """The float32 values of stored bits."""
    if dtype == "BF16":
        wide = bits.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    return bits.astype(np.float32, copy=False)


def encode(values: Array, dtype: str) -> Bits:
    """Float32 values as stored bits, rounded to the nearest, ties to even. They must be below `LIMITS`."""
    if dtype != "BF16":
        return values.astype(FLOATS[dtype], copy=False)
    wide = values.view(np.uint32)
    rounded = wide >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += wide
    rounded >>= 16
    return rounded.astype(np.uint16)


def fits(values: Array, dtype: str) -> bool:
    """Whether every value stays finite when it is stored; False for NaN."""
    return bool(-LIMITS[dtype] < values.min() and values.max() < LIMITS[dtype])
