"""mergekit's slerp of whole weights, at once: what a merge in blocks of rows is compared with."""

from collections.abc import Sequence

from paft.delta.rows import Array
from paft.merge.slerp import along, full_arc, gram_of


def slerp_full(base: Array, deltas: Sequence[Array], t: float) -> Array:
    """The point at `t` between the weights base + delta, as a merged delta."""
    first, second = deltas
    return along(full_arc(gram_of(base + first, base + second), t), deltas, base)
