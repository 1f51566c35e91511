"""The L1 penalty of the SFT delta, and how sparse that is to become."""

from dataclasses import dataclass, field
from enum import Enum

from paft.config.checks import UNLESS_DEFAULT, Typed, require


class L1Of(str, Enum):
    """`delta`: sum of |alpha/rank * B A| (equation 1 read literally); `factors`: sum of |A| and |B|."""

    delta = "delta"
    factors = "factors"


class L1Method(str, Enum):
    """How the penalty acts: its subgradient joins the loss's, or a proximal step after each optimizer step.

    Only the second gives exact zeros; see `paft.training.proximal`.
    """

    subgradient = "subgradient"
    proximal = "proximal"


class Sparsity(str, Enum):
    """What counts as zero: below 1e-5 (the paper's), below a tenth of the layer's RMS (no scale), or exactly zero."""

    below_threshold = "below_threshold"
    below_tenth_rms = "below_tenth_rms"
    zero = "zero"


@dataclass
class L1Config(Typed):
    """The penalty of equation 1: weight * |delta_sft|_1, summed over every element."""

    weight: float = 0.0
    """The root key `lambda`; with `target_sparsity` the value that lambda starts from."""
    of: L1Of = L1Of.delta
    method: L1Method = field(default=L1Method.subgradient, metadata=UNLESS_DEFAULT)
    target_sparsity: float | None = field(default=None, metadata=UNLESS_DEFAULT)
    """Move lambda while training so that the finished delta is as sparse as this, a share; null keeps it fixed."""
    target_measure: Sparsity = field(default=Sparsity.below_threshold, metadata=UNLESS_DEFAULT)
    """What the target is a share of."""
    target_every: int = field(default=1, metadata=UNLESS_DEFAULT)
    """Optimizer steps between two measurements, each of some rows of every layer's delta."""
    target_gain: float = field(default=5.0, metadata=UNLESS_DEFAULT)
    """How fast lambda follows; see `paft.training.sparsity_control`."""

    def __post_init__(self) -> None:
        require(0 <= self.weight < float("inf"), "lambda", self.weight, "a finite number, at least 0")
        target = self.target_sparsity
        require(
            target is None or 0 < target < 1, "sft.l1.target_sparsity", target, "between 0 and 1, or null"
        )
        require(self.target_every > 0, "sft.l1.target_every", self.target_every, "at least 1 step")
        require(self.target_gain > 0, "sft.l1.target_gain", self.target_gain, "positive")
        if target is not None and self.weight == 0:
            raise ValueError(
                f"sft.l1.target_sparsity={target} moves lambda by factors, so lambda must be positive, got 0; "
                "give a value to start from, as lambda=1e-4, or sft.l1.target_sparsity=null"
            )

    def in_effect(self) -> "L1Config":
        """What a training depends on: without a weight nothing else matters."""
        return self if self.weight else L1Config()
