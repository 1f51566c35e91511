"""Contrastive preference optimisation."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from paft.config import require
from paft.objectives.objective import Objective, PairLogps

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class CPO(Objective, name="cpo", title="CPO", source="Xu et al. 2024, arXiv:2401.08417"):
    """DPO with a uniform reference, and the likelihood of the chosen answer; no reference model."""

    beta: float = 0.1
    """Scale of the difference of the answers' log-probabilities."""
    sft_weight: float = 1.0
    """Weight of the mean negative log-likelihood per token of the chosen answers."""
    label_smoothing: float = 0.0
    """Share of labels taken to be flipped."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.beta > 0, "preference.beta", self.beta, "positive")
        require(self.sft_weight >= 0, "preference.sft_weight", self.sft_weight, "at least 0")
        require(
            0 <= self.label_smoothing < 0.5, "preference.label_smoothing", self.label_smoothing, "in [0, 0.5)"
        )

    @property
    def weight_of_nll(self) -> float:
        return self.sft_weight

    @property
    def reward_scale(self) -> float:
        return self.beta

    def losses(self, logps: PairLogps) -> "Tensor":
        from paft.losses import contrastive_loss

        return contrastive_loss(
            logps.chosen, logps.rejected, beta=self.beta, label_smoothing=self.label_smoothing
        )
