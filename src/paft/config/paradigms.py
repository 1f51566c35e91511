"""Which branches there are, and how they are trained."""

from dataclasses import dataclass
from enum import Enum

from paft.config.checks import Typed, require


class Paradigm(str, Enum):
    """Which branches are trained, and how: `parallel` merges both, `sequential` trains preference on top of SFT,
    `preference_first` the other way round, `expo` goes beyond `sequential` by a share of its preference delta (Zheng et
    al. 2024, arXiv:2404.16792), `joint` trains one adapter on both losses at once, `sft` and `preference` train one
    alone, `base` scores the base model."""

    parallel = "parallel"
    sequential = "sequential"
    sft = "sft"
    preference = "preference"
    base = "base"
    joint = "joint"
    preference_first = "preference_first"
    expo = "expo"

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches whose settings and rows are read."""
        match self:
            case Paradigm.base:
                return ()
            case Paradigm.sft | Paradigm.preference:
                return (self.value,)
        return ("sft", "preference")


@dataclass
class JointConfig(Typed):
    """`paradigm=joint`: one adapter by the preference branch's settings, on SFT rows and pairs in the same steps."""

    sft_weight: float = 1.0
    """Of the SFT loss, the mean negative log-likelihood per answer token, beside the preference loss."""

    def __post_init__(self) -> None:
        require(self.sft_weight > 0, "joint.sft_weight", self.sft_weight, "positive")


@dataclass
class ExpoConfig(Typed):
    """`paradigm=expo`: base + delta_sft + (1 + alpha) delta_preference, of preference training on top of SFT."""

    alpha: float = 0.3
    """How far beyond the preference model; 0 is `paradigm=sequential`."""

    def __post_init__(self) -> None:
        require(self.alpha > 0, "expo.alpha", self.alpha, "positive; paradigm=sequential is alpha 0")
