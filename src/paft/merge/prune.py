"""Deltas made sparse before they are merged: `merge.prune_sft`, `merge.prune_preference`.

Of a delta d with n elements over all its tensors and a share s, `magnitude` leaves d_j where |d_j| is at least the
(int((1 - s) n) + 1)-th largest magnitude, as the TIES authors' code trims, and 0 elsewhere; `random` leaves each d_j
with probability 1 - s. What is left keeps its value: bringing it to a size is `merge.norm`'s.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

from paft.config import MergeConfig, PruneBy
from paft.delta.delta import Delta, Dense, StoredDelta
from paft.delta.rows import Array
from paft.merge.method import Adapters
from paft.merge.sparsify import Sparsifier, above, bernoulli_mask, magnitude_threshold, tensor_generator


def pruned(adapters: Adapters, method: MergeConfig) -> Adapters:
    """The branches with the shares of `method.pruned` made zero; the others as they are."""
    shares = method.pruned
    return {
        branch: _pruned(branch, adapter, method, shares[branch]) if branch in shares else adapter
        for branch, adapter in adapters.items()
    }


def _pruned(
    branch: str, adapter: Mapping[str, StoredDelta], method: MergeConfig, share: float
) -> Mapping[str, StoredDelta]:
    if method.prune_by is PruneBy.random:
        assert method.prune_seed is not None, "MergeConfig gives one to what is drawn"
        draw = partial(_kept_at_random, 1 - share, method.prune_seed, branch)
        return {name: Pruned(stored, partial(draw, name)) for name, stored in adapter.items()}

    def deltas() -> Iterator[Delta]:
        return (stored.load() for stored in adapter.values())

    keep = above(magnitude_threshold(deltas, 1 - share))
    return {name: Pruned(stored, lambda _: keep) for name, stored in adapter.items()}


def _kept_at_random(density: float, seed: int, branch: str, name: str, delta: Delta) -> Sparsifier:
    # of other draws than DARE's masks, which would keep the same elements
    mask = bernoulli_mask(delta.shape, density, tensor_generator(seed, f"prune {branch}", name))
    return lambda rows, block: block * mask[rows]


@dataclass(frozen=True)
class Pruned:
    """A delta of which some elements are zero."""

    stored: StoredDelta
    sparsifier: Callable[[Delta], Sparsifier]
    scaling: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        return self.stored.shape

    def load(self) -> Dense:
        delta = self.stored.load()
        return Dense(_Kept(delta, self.sparsifier(delta)), self.scaling)

    def scaled(self, factor: float) -> Self:
        return replace(self, scaling=self.scaling * factor)


@dataclass(frozen=True)
class _Kept:
    delta: Delta
    keep: Sparsifier

    @property
    def shape(self) -> tuple[int, ...]:
        return self.delta.shape

    def __getitem__(self, rows: slice) -> Array:
        return self.keep(rows, self.delta[rows])
