"""A merged delta as the factors of a LoRA adapter: exact where a merge only adds LoRA deltas, else the nearest of them.

Shapes are those of the delta: A [rank, in] and B [out, rank] with delta = B @ A.
"""

import numpy as np

from paft.delta.delta import Factors
from paft.delta.rows import Array
from paft.merge.method import TensorMerge
from paft.merge.sparsify import tensor_generator

POWERS = 4
"""Times that the range found is refined: the error is then within a per cent of the least there is."""
OVERSAMPLED = 10
"""Directions looked for beyond the rank."""


def exact_factors(tensor: TensorMerge) -> Factors | None:
    """The factors of a sum of low-rank deltas, one below the other; None where the merge is no such sum."""
    if tensor.coefficients is None:
        return None
    parts = [(c, delta) for c, delta in zip(tensor.coefficients, tensor.deltas, strict=True) if c]
    factors = [(c * delta.scaling, delta) for c, delta in parts if isinstance(delta, Factors)]
    if len(factors) < len(parts):
        return None
    if not factors:
        return None
    A = np.concatenate([delta.A for _, delta in factors])
    B = np.concatenate([np.float32(c) * delta.B for c, delta in factors], axis=1)
    return Factors(A, B, 1.0)


def nearest_factors(delta: Array, rank: int, name: str) -> Factors:
    """The truncated SVD of a float32 delta [out, in].

    By randomised subspace iteration (Halko, Martinsson and Tropp 2011, algorithm 4.4). Singular values are shared
    evenly by A and B. Draws depend on the tensor's `name` alone.
    """
    rank = min(rank, *delta.shape)
    width = min(rank + OVERSAMPLED, *delta.shape)
    draws = tensor_generator(0, "range", name).standard_normal((delta.shape[1], width)).astype(np.float32)
    Q, _ = np.linalg.qr(delta @ draws)
    for _ in range(POWERS):
        Q, _ = np.linalg.qr(delta.T @ Q)
        Q, _ = np.linalg.qr(delta @ Q)
    U, S, Vt = np.linalg.svd(Q.T @ delta, full_matrices=False)
    root = np.sqrt(S[:rank])
    return Factors(root[:, None] * Vt[:rank], (Q @ U[:, :rank]) * root, 1.0)


def padded(factors: Factors, rank: int) -> Factors:
    """The same delta with zeros up to a rank: one adapter has one rank everywhere."""
    more = rank - factors.A.shape[0]
    A, B = np.pad(factors.A, ((0, more), (0, 0))), np.pad(factors.B, ((0, 0), (0, more)))
    return Factors(A, B, factors.scaling)
