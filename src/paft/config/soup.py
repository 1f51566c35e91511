"""Several trainings of a branch as one."""

from dataclasses import dataclass, field
from enum import Enum
from math import inf, prod
from typing import Any

from paft.config.checks import Typed, require


class SoupKind(str, Enum):
    """`uniform`: the mean of all trainings; `greedy`: of them the best by its loss on validation rows, then each other
    one, the better first, if the mean with it has no higher loss than the mean without (recipe 1 of the paper)."""

    uniform = "uniform"
    greedy = "greedy"


@dataclass
class SoupConfig(Typed):
    """Several trainings of a branch, averaged into one delta that every merge takes (model soups, Wortsman et al. 2022,
    arXiv:2203.05482)."""

    seeds: list[int] = field(default_factory=list)
    """The trainings' seeds, in place of the root key `seed`; each training is the one that a cell with this seed has.
    Empty: one training, no soup."""
    kind: SoupKind = SoupKind.uniform
    num_rows: int = 256
    """Validation rows of the branch that `greedy` goes by: the first so many that are no training rows too."""

    def __post_init__(self) -> None:
        sound = len(set(self.seeds)) == len(self.seeds) and all(0 <= seed < 2**32 for seed in self.seeds)
        require(sound, "soup.seeds", self.seeds, "different seeds, each at least 0 and below 2^32")
        require(self.num_rows > 0, "soup.num_rows", self.num_rows, "positive")
        if self.kind is SoupKind.greedy and prod(map(len, self.axes.values())) < 2:
            raise ValueError(
                f"soup.kind=greedy chooses among two trainings or more, got {self.stated or 'one training'}; give more "
                f"in soup.{' or soup.'.join(self.lists)}, or leave soup.kind out"
            )

    @property
    def lists(self) -> dict[str, list[Any]]:
        """What the trainings may differ in, by its name on the command line."""
        return {"seeds": self.seeds}

    @property
    def axes(self) -> dict[str, list[Any]]:
        """Those in which they are told to."""
        return {name: values for name, values in self.lists.items() if values}

    @property
    def stated(self) -> str:
        """The same in words, as `soup.seeds=[0, 1]`; empty of one training, which is no soup."""
        return " ".join(f"soup.{name}={values}" for name, values in self.axes.items())


@dataclass
class SFTSoupConfig(SoupConfig):
    """Several SFT trainings as one; both lists together: a training for each lambda and seed."""

    lambdas: list[float] = field(default_factory=list)
    """The trainings' lambdas, in place of the root key `lambda`; each training is the one that a cell with this lambda
    has. Empty: all have the root key's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        sound = len(set(self.lambdas)) == len(self.lambdas) and all(
            0 <= value < inf for value in self.lambdas
        )
        require(sound, "soup.lambdas", self.lambdas, "different numbers, each finite and at least 0")

    @property
    def lists(self) -> dict[str, list[Any]]:
        return super().lists | {"lambdas": self.lambdas}
