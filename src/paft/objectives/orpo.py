"""Odds-ratio preference optimisation."""

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from paft.config import require
from paft.objectives.objective import Objective, PairLogps

if TYPE_CHECKING:
    from torch import Tensor


class NLLScope(str, Enum):
    """Which tokens of the chosen text enter ORPO's likelihood term."""

    sequence = "sequence"
    response = "response"


@dataclass
class ORPO(Objective, name="orpo", title="ORPO", source="Hong et al. 2024, arXiv:2403.07691"):
    """Likelihood of the chosen text and the log odds ratio of the answers; no reference."""

    term: ClassVar[str] = "odds_ratio_loss"

    beta: float = 0.1
    """Weight of the odds-ratio term (lambda in the ORPO paper)."""
    nll_scope: NLLScope = NLLScope.sequence
    """Prompt and answer, or the answer alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.beta > 0, "preference.beta", self.beta, "positive")

    @property
    def learns_prompt(self) -> bool:
        return self.nll_scope is NLLScope.sequence

    @property
    def per_token(self) -> bool:
        return True

    @property
    def weight_of_nll(self) -> float:
        return 1.0

    @property
    def reward_scale(self) -> float:
        return self.beta

    def losses(self, logps: PairLogps) -> "Tensor":
        from paft.losses import odds_ratio_loss

        return odds_ratio_loss(logps.chosen, logps.rejected, beta=self.beta)
