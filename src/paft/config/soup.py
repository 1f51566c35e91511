"""Several trainings of a branch as one."""

from dataclasses import dataclass, field

from paft.config.checks import Typed, require


@dataclass
class SoupConfig(Typed):
    """Several trainings of a branch, averaged into one delta that every merge takes (model soups, Wortsman et al. 2022,
    arXiv:2203.05482): the uniform mean."""

    seeds: list[int] = field(default_factory=list)
    """The trainings' seeds, in place of the root key `seed`; each training is the one that a cell with this seed has.
    Empty: one training, no soup."""

    def __post_init__(self) -> None:
        sound = len(set(self.seeds)) == len(self.seeds) and all(0 <= seed < 2**32 for seed in self.seeds)
        require(sound, "soup.seeds", self.seeds, "different seeds, each at least 0 and below 2^32")
