"""A merge that is read and planned, and not yet computed: any of its tensors can be, in any order, many times."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from paft.delta.rows import Array, Bits, blocks_of, decode
from paft.files.safetensors import Stored, read_checkpoint
from paft.merge.counts import Counts
from paft.merge.layout import STORED
from paft.merge.method import Adapters, Plan, TensorMerge, gram_of_deltas
from paft.merge.norm import deltas_of
from paft.merge.overlap import overlap
from paft.merge.stream import Weight


@dataclass(frozen=True)
class PlannedMerge:
    """`base` plus the merged `adapters`: what one tensor is, apart from where it is written."""

    base: Path
    adapters: Adapters
    plan: Plan
    dtype: str | None
    """Storage type of the tensors that change, one of `STORED`; None keeps the base's."""
    labels: Mapping[str, Any]
    """What is known of the merge before it is computed, for its report."""
    also: Collection[str] = ()
    """Tensors that change although no branch differs there."""
    measures_overlap: bool = False

    @cached_property
    def stored(self) -> dict[str, Stored]:
        """Every tensor of the base, in file order."""
        return {name: s for tensors in read_checkpoint(self.base).values() for name, s in tensors.items()}

    @cached_property
    def names(self) -> list[str]:
        """The tensors that the merge changes, in file order where the base holds them."""
        adapted = (name for adapter in self.adapters.values() for name in adapter)
        changed = dict.fromkeys([*self.also, *adapted])
        held = [name for name in self.stored if name in changed]
        return [*held, *(name for name in changed if name not in self.stored)]

    @contextmanager
    def weights(self) -> Iterator[dict[str, Weight]]:
        """The tensors of the base that change, with their files open."""
        with ExitStack() as files:
            held: dict[str, Weight] = {}
            for path, tensors in read_checkpoint(self.base).items():
                file = files.enter_context(path.open("rb"))
                kind = STORED[self.dtype] if self.dtype else None
                held |= {name: Weight(name, stored, file, kind) for name, stored in tensors.items()}
            yield {name: held[name] for name in self.names}

    def tensor(self, weight: Weight) -> tuple[TensorMerge, Counts]:
        """How the rows of one tensor are merged, and what to count of them."""
        deltas = deltas_of(self.adapters, weight)
        tensor = self.plan(weight.name, deltas, weight)
        gram = gram_of_deltas(*deltas) if len(deltas) == 2 else None
        common = overlap(*deltas) if self.measures_overlap else None
        return tensor, Counts(math.prod(weight.shape), gram, tensor.linear, common)

    def delta(self, weight: Weight) -> Array:
        """The merged delta of a tensor, whole, as a float32 matrix."""
        tensor, _ = self.tensor(weight)
        return np.concatenate([block.merged for block in merged_blocks(tensor, weight)])

    def merged(self, weight: Weight) -> Array:
        """The merged tensor itself, whole and not rounded, in the shape it is stored in."""
        tensor, _ = self.tensor(weight)
        sums = [block.base + block.merged for block in merged_blocks(tensor, weight)]
        return np.concatenate(sums).reshape(weight.stored.shape)


class Block(NamedTuple):
    """Some rows of one tensor, float32 but for `before`."""

    deltas: Sequence[Array]
    before: Bits
    """Of the base, as it is stored."""
    base: Array
    merged: Array
    """Of the merged delta."""


def merged_blocks(tensor: TensorMerge, weight: Weight) -> Iterator[Block]:
    """All rows of a tensor in order."""
    for rows, deltas in blocks_of(*tensor.deltas):
        before = weight.bits(rows)
        base = decode(before, weight.stored.dtype)
        yield Block(deltas, before, base, tensor.merge(rows, deltas, base))
