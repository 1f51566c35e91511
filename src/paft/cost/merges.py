"""What a merge takes, and the proof of it: tensor by tensor, and as models that transformers loads."""

import os
from dataclasses import dataclass

from paft.config import ModelShape
from paft.cost.flops_and_bytes import linear_sizes, parameters

COPIES = 8
"""Float32 tensors of the largest size that exist at once in a merge."""
MERGED_PER_SECOND = 1e8
"""Bytes of the base read, merged in float32 and written."""
PROVED, PROOF_MERGES = 4.0, 2
"""Times a merge's seconds that it takes with its proof, which loads four models and merges twice."""
AT_ONCE = 4
"""Tensors in work at a time, at most."""
DECOMPOSED_COPIES = 35
"""Float32 arrays of its size that a tensor takes whose deltas are decomposed: the most, of products in float64."""
DECOMPOSED_PER_SECOND = 2e9
"""n m^2 of float32 matrices [m, n] with m <= n whose singular values and vectors one core computes in a second."""
ROOM = 0.5
"""Share of the free memory that the models of a proof may take in float32; larger ones stay in their stored type."""


@dataclass(frozen=True)
class MergeWork:
    """What a merge changes, and how."""

    shape: ModelShape
    every: bool = False
    """Every tensor, as after full fine-tuning, not linear layers alone."""
    decompositions: int = 0
    """Singular value decompositions of every matrix, in sizes of it."""

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """Sizes of the tensors of two dimensions that change."""
        shape = self.shape
        layers = [*linear_sizes(shape).values()] * shape.num_hidden_layers
        ends = 1 if shape.tie_word_embeddings else 2
        return layers + [(shape.hidden_size, shape.vocab_size)] * (ends if self.every else 0)


def merge_memory(work: MergeWork, *, item_bytes: int, proved: bool, limit: float) -> float:
    """Bytes of a merge: float32 copies of the largest tensor, of the base and of both deltas, while it works.

    Decompositions take more of each tensor in work. That of a proof is one whole model, of `item_bytes` a weight where
    float32 has no room in the `limit`.
    """
    largest = sorted((n * m for n, m in work.matrices), reverse=True)
    working = 4.0 * COPIES * largest[0]
    if work.decompositions:
        working = 4.0 * DECOMPOSED_COPIES * sum(largest[:AT_ONCE])
    if not proved:
        return working
    whole = 4.0 * parameters(work.shape)
    return max(working, whole if whole < ROOM * limit else float(item_bytes * parameters(work.shape)))


def merge_seconds(work: MergeWork, *, item_bytes: int, proved: bool) -> float:
    """In proportion to the base's bytes, and to what its matrices take that are decomposed."""
    seconds = parameters(work.shape) * item_bytes / MERGED_PER_SECOND * (PROVED if proved else 1.0)
    cores = min(AT_ONCE, os.cpu_count() or 1)
    once = sum(min(size) ** 2 * max(size) for size in work.matrices) / (cores * DECOMPOSED_PER_SECOND)
    return seconds + work.decompositions * once * (1 + (PROOF_MERGES if proved else 0))
