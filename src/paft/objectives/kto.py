"""Kahneman-Tversky optimisation: answers that are judged one by one."""

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from paft.config import require
from paft.objectives.dpo import ReferenceFrom
from paft.objectives.objective import AnswerLogps, UnpairedObjective

if TYPE_CHECKING:
    from torch import Tensor


class KTOLoss(str, Enum):
    """`kto`: an answer is to be above, or below, the policy's KL divergence from the reference; `apo_zero_unpaired`:
    above or below the reference itself (D'Oosterlinck et al. 2024, 2408.06266), without the forward pass that
    estimates the divergence."""

    kto = "kto"
    apo_zero_unpaired = "apo_zero_unpaired"


@dataclass
class KTO(UnpairedObjective, name="kto", title="KTO", source="Ethayarajh et al. 2024, arXiv:2402.01306"):
    """Single answers judged good or bad, each against the KL divergence from the base; pairs are split in two."""

    loss: KTOLoss = KTOLoss.kto
    """What an answer is measured against."""
    beta: float = 0.1
    """How soon an answer counts as good or bad enough: larger is sooner, and holds the policy nearer the reference."""
    desirable_weight: float = 1.0
    """Weight of the loss of good answers. Where the labels are uneven, raise that of the rarer one so that weight times
    number of rows is 1 to 4/3 as large for good answers as for bad ones."""
    undesirable_weight: float = 1.0
    """Weight of the loss of bad answers."""
    reference: ReferenceFrom = ReferenceFrom.stage
    """`online` is for a base that fits on no single device."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.beta > 0, "preference.beta", self.beta, "positive")
        require(self.desirable_weight > 0, "preference.desirable_weight", self.desirable_weight, "positive")
        require(
            self.undesirable_weight > 0, "preference.undesirable_weight", self.undesirable_weight, "positive"
        )

    @property
    def needs_reference(self) -> bool:
        return True

    @property
    def has_reference_stage(self) -> bool:
        return self.reference is ReferenceFrom.stage

    @property
    def needs_kl(self) -> bool:
        return self.loss is KTOLoss.kto

    @property
    def reward_scale(self) -> float:
        return self.beta

    def losses(self, logps: AnswerLogps) -> "Tensor":
        from paft.losses import kto_loss

        return kto_loss(
            logps.policy,
            logps.reference,
            logps.desirable,
            kl=logps.kl,
            beta=self.beta,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
        )
