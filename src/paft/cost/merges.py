"""What a merge takes, and the proof of it: tensor by tensor, and as models that transformers loads."""

from paft.config import ModelShape
from paft.cost.flops_and_bytes import linear_sizes, parameters

COPIES = 8
"""Float32 tensors of the largest size that exist at once in a merge."""
MERGED_PER_SECOND = 1e8
"""Bytes of the base read, merged in float32 and written."""
PROVED = 4.0
"""Times a merge's seconds that it takes with its proof, which loads four models and merges twice."""
ROOM = 0.5
"""Share of the free memory that the models of a proof may take in float32; larger ones stay in their stored type."""


def merge_memory(shape: ModelShape, *, item_bytes: int, proved: bool, limit: float) -> float:
    """Bytes of a merge: float32 copies of the largest tensor, of the base and of both deltas, while it works.

    That of a proof is one whole model, of `item_bytes` a weight where float32 has no room in the `limit`.
    """
    working = 4.0 * COPIES * max(n * m for n, m in linear_sizes(shape).values())
    if not proved:
        return working
    whole = 4.0 * parameters(shape)
    return max(working, whole if whole < ROOM * limit else float(item_bytes * parameters(shape)))


def merge_seconds(shape: ModelShape, *, item_bytes: int, proved: bool) -> float:
    """In proportion to the base's bytes."""
    return parameters(shape) * item_bytes / MERGED_PER_SECOND * (PROVED if proved else 1.0)
