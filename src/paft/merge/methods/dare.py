"""DARE: drop at random and rescale, then elect signs and add what agrees, or just add."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paft.config import Election, ElectOn, Normalize, Rescale
from paft.delta.delta import Delta
from paft.delta.rows import Array
from paft.merge.combine import added, checked, choice, each_density, elected
from paft.merge.method import SparseMerge
from paft.merge.sparsify import Mask, Sparsifier, bernoulli_mask, random, tensor_generator

PAPER = "Yu et al. 2024, arXiv:2311.03099"


@dataclass
class DareMerge(SparseMerge):
    """What the two share: drop at random, then rescale."""

    rescale: Rescale = Rescale.l1
    """How what is left makes up for what was dropped."""
    normalize: Normalize = Normalize.none
    """What the sum is divided by."""
    seed: int = 42
    """Of the drop masks, together with branch and tensor name."""

    def sparsifier(self, number: int, branch: str, name: str, delta: Delta) -> Sparsifier:
        density = self.densities[number]
        mask = bernoulli_mask(delta.shape, density, tensor_generator(self.seed, branch, name))
        return random(delta, density, mask, self.rescale)


@dataclass
class DareTies(DareMerge, name="dare", title="DARE TIES", source=PAPER):
    """Drop at random, rescale, elect signs, add what agrees: the paper's DARE TIES."""

    election: Election = Election.mass
    """How the sign of a position is elected."""
    elect_on: ElectOn = ElectOn.weighted
    """Whether weights count in the election."""

    def merge_deltas(self, deltas: Sequence[Array], base: Array) -> Array:
        vote = self.election, self.elect_on
        return elected(checked(deltas, self.weights), self.weights, *vote, self.normalize, self.scale)


@dataclass
class DareLinear(DareMerge, name="dare_linear", title="DARE Linear", source=PAPER):
    """Drop at random, rescale, add."""

    def merge_deltas(self, deltas: Sequence[Array], base: Array) -> Array:
        return added(checked(deltas, self.weights), self.weights, self.normalize, self.scale)


def dare_ties(
    deltas: Sequence[Array],
    weights: Sequence[float],
    *,
    density: float | Sequence[float],
    generators: Sequence[np.random.RandomState] | None = None,
    masks: Sequence[Mask] | None = None,
    rescale: Rescale | str = Rescale.l1,
    scale: float = 1.0,
    election: Election | str = Election.mass,
    elect_on: ElectOn | str = ElectOn.weighted,
    normalize: Normalize | str = Normalize.none,
) -> Array:
    """Drop at random and rescale, then elect a sign per position and add what has it (Yu et al. 2024).

    The masks are drawn from `generators`, one per delta, or given as `masks` of zeros and ones.
    """
    deltas = checked(deltas, weights)
    kept = drop(deltas, each_density(density, deltas), choice(Rescale, rescale), generators, masks)
    vote = choice(Election, election), choice(ElectOn, elect_on)
    return elected(kept, weights, *vote, choice(Normalize, normalize), scale)


def dare_linear(
    deltas: Sequence[Array],
    weights: Sequence[float],
    *,
    density: float | Sequence[float],
    generators: Sequence[np.random.RandomState] | None = None,
    masks: Sequence[Mask] | None = None,
    rescale: Rescale | str = Rescale.l1,
    scale: float = 1.0,
    normalize: Normalize | str = Normalize.none,
) -> Array:
    """Drop at random and rescale, then add (Yu et al. 2024); masks as in `dare_ties`."""
    deltas = checked(deltas, weights)
    kept = drop(deltas, each_density(density, deltas), choice(Rescale, rescale), generators, masks)
    return added(kept, weights, choice(Normalize, normalize), scale)


def drop(
    deltas: Sequence[Array],
    density: Sequence[float],
    how: Rescale,
    generators: Sequence[np.random.RandomState] | None = None,
    masks: Sequence[Mask] | None = None,
) -> Sequence[Array]:
    """What the masks leave of each delta, rescaled. Raises `ValueError` where there is neither mask nor generator."""
    if masks is None:
        if min(density) == 1:
            return deltas
        if generators is None:
            raise ValueError(f"density {list(density)} drops at random: give one generator or mask per delta")
        drawn = zip(deltas, density, generators, strict=True)
        masks = [bernoulli_mask(delta.shape, share, generator) for delta, share, generator in drawn]
    each = zip(deltas, density, masks, strict=True)
    return [random(delta, share, mask, how)(slice(None), delta) for delta, share, mask in each]
