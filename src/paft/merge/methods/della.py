"""DELLA: drop at random, small values rather than large ones, and rescale."""

from collections.abc import Sequence
from dataclasses import dataclass

from paft.config import Election, ElectOn, Normalize, Rescale, require
from paft.delta.delta import Delta
from paft.delta.rows import Array
from paft.merge.combine import added, checked, elected
from paft.merge.method import SparseMerge
from paft.merge.sparsify import Sparsifier, everything, mask_by_rank, random, tensor_generator

PAPER = "Deep et al. 2024, arXiv:2406.11617"


@dataclass
class DellaMerge(SparseMerge):
    """What the two share: drop by rank in the row, then rescale."""

    epsilon: float = 0.15
    """The largest value of a row is kept with probability density + epsilon, the smallest with density - epsilon."""
    rescale: Rescale = Rescale.l1
    """How what is left makes up for what was dropped."""
    seed: int = 42
    """Of the drop masks, together with branch and tensor name."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.epsilon < 0.5, "merge.epsilon", self.epsilon, "in [0, 0.5)")
        for density in self.densities:
            inside = density == 1 or self.epsilon < density < 1 - self.epsilon
            allowed = (
                f"above {self.epsilon:g} and below {1 - self.epsilon:g} (merge.epsilon on either side), or 1"
            )
            require(inside, "merge.density", density, allowed)

    def sparsifier(self, number: int, branch: str, name: str, delta: Delta) -> Sparsifier:
        density = self.densities[number]
        if density == 1:
            return everything
        mask = mask_by_rank(delta, density, self.epsilon, tensor_generator(self.seed, branch, name))
        return random(delta, density, mask, self.rescale)


@dataclass
class Della(DellaMerge, name="della", title="DELLA", source=PAPER):
    """Drop by rank, rescale, elect signs, average what agrees."""

    normalize: Normalize = Normalize.weights
    """What the sum of what agrees is divided by."""
    election: Election = Election.mass
    """How the sign of a position is elected."""
    elect_on: ElectOn = ElectOn.weighted
    """Whether weights count in the election."""

    def merge_deltas(self, deltas: Sequence[Array], base: Array) -> Array:
        vote = self.election, self.elect_on
        return elected(checked(deltas, self.weights), self.weights, *vote, self.normalize, self.scale)


@dataclass
class DellaLinear(DellaMerge, name="della_linear", title="DELLA Linear", source=PAPER):
    """Drop by rank, rescale, add."""

    normalize: Normalize = Normalize.none
    """What the sum is divided by."""

    def merge_deltas(self, deltas: Sequence[Array], base: Array) -> Array:
        return added(checked(deltas, self.weights), self.weights, self.normalize, self.scale)
