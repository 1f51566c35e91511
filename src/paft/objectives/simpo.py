"""Simple preference optimisation."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from paft.config import require
from paft.objectives.objective import Objective, PairLogps

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class SimPO(Objective, name="simpo", title="SimPO", source="Meng et al. 2024, arXiv:2405.14734"):
    """Mean log-probabilities per token, apart by a margin; no reference, so nothing holds the delta to the base."""

    beta: float = 2.0
    """Scale of the mean log-probabilities; the authors' 2.0 for Mistral-7B-Base."""
    gamma: float = 1.0
    """The margin between the answers' rewards (gamma / beta is the authors' gamma_beta_ratio)."""
    label_smoothing: float = 0.0
    """Share of labels taken to be flipped."""
    sft_weight: float = 0.0
    """Weight of the mean negative log-likelihood per token of the chosen answers (CPO-SimPO)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.beta > 0, "preference.beta", self.beta, "positive")
        require(self.gamma >= 0, "preference.gamma", self.gamma, "at least 0")
        require(
            0 <= self.label_smoothing < 0.5, "preference.label_smoothing", self.label_smoothing, "in [0, 0.5)"
        )
        require(self.sft_weight >= 0, "preference.sft_weight", self.sft_weight, "at least 0")

    @property
    def per_token(self) -> bool:
        return True

    @property
    def weight_of_nll(self) -> float:
        return self.sft_weight

    @property
    def reward_scale(self) -> float:
        return self.beta

    def losses(self, logps: PairLogps) -> "Tensor":
        from paft.losses import contrastive_loss

        smoothing = self.label_smoothing
        return contrastive_loss(
            logps.chosen, logps.rejected, beta=self.beta, gamma=self.gamma, label_smoothing=smoothing
        )
