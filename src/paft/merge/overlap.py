"""How far two deltas read the same directions of a layer's input: a measure of interference before any merge."""

import math

import numpy as np
from numpy.typing import NDArray

from paft.delta.delta import Delta, Factors


def overlap(first: Delta, second: Delta) -> float | None:
    """tr(G H) / sqrt(tr(G G) tr(H H)) of G = first^T first and H = second^T second; None where a delta is zero.

    The RV coefficient of the two (Escoufier 1973, not centred), also called linear CKA: 0 where their row spaces are
    orthogonal, 1 where G and H are the same up to a factor. No scaling of a delta changes it. Of factors no delta is
    formed.
    """
    own = _squares(first, first), _squares(second, second)
    return _squares(first, second) / math.sqrt(own[0] * own[1]) if min(own) > 0 else None


def _squares(a: Delta, b: Delta) -> float:
    """tr(a^T a b^T b), which is the squared Frobenius norm of a b^T."""
    if isinstance(a, Factors) and isinstance(b, Factors):
        between = _wide(a.A) @ _wide(b.A).T
        left, right = (_wide(factors.B).T @ _wide(factors.B) for factors in (a, b))
        return float((a.scaling * b.scaling) ** 2 * np.vdot(between, left @ between @ right))
    x, y = a[:], b[:]
    out, width = x.shape
    if out < width:
        between = _wide(x @ y.T)
        return float(np.vdot(between, between))
    return float(np.vdot(_wide(x.T @ x), _wide(y.T @ y)))


def _wide(matrix: NDArray[np.float32]) -> NDArray[np.float64]:
    return matrix.astype(np.float64)
