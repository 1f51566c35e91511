"""Direct preference optimisation and its variants of one formula."""

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from paft.config import require
from paft.objectives.objective import Objective, PairLogps

if TYPE_CHECKING:
    from torch import Tensor


class DPOLoss(str, Enum):
    """`sigmoid` is DPO's own (Rafailov et al. 2023), `ipo` Azar et al. 2023, `hinge` Zhao et al. 2023."""

    sigmoid = "sigmoid"
    ipo = "ipo"
    hinge = "hinge"


class ReferenceFrom(str, Enum):
    """`stage`: the reference scores each pair once, for every run on these pairs; `online`: again in every step."""

    stage = "stage"
    online = "online"


@dataclass
class DPO(Objective, name="dpo", title="DPO", source="Rafailov et al. 2023, arXiv:2305.18290"):
    """Direct preference optimisation; the reference is the base model."""

    loss: DPOLoss = DPOLoss.sigmoid
    """The function of the margin between the answers."""
    beta: float = 0.1
    """How strongly the policy is held to the reference: larger holds more."""
    label_smoothing: float = 0.0
    """Share of labels taken to be flipped (conservative DPO); sigmoid only."""
    reference: ReferenceFrom = ReferenceFrom.stage
    """`online` is for a base that fits on no single device."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.beta > 0, "preference.beta", self.beta, "positive")
        require(
            0 <= self.label_smoothing < 0.5, "preference.label_smoothing", self.label_smoothing, "in [0, 0.5)"
        )
        if self.label_smoothing and self.loss is not DPOLoss.sigmoid:
            raise ValueError(
                f"preference.label_smoothing={self.label_smoothing} needs preference.loss=sigmoid, "
                f"got {self.loss.value!r}; set it to 0"
            )

    @property
    def needs_reference(self) -> bool:
        return True

    @property
    def has_reference_stage(self) -> bool:
        return self.reference is ReferenceFrom.stage

    @property
    def per_token(self) -> bool:
        return self.loss is DPOLoss.ipo

    @property
    def reward_scale(self) -> float:
        return self.beta

    def losses(self, logps: PairLogps) -> "Tensor":
        from paft.losses import dpo_loss

        assert logps.reference_chosen is not None and logps.reference_rejected is not None
        return dpo_loss(
            logps.chosen,
            logps.rejected,
            logps.reference_chosen,
            logps.reference_rejected,
            beta=self.beta,
            loss=self.loss.value,
            label_smoothing=self.label_smoothing,
        )
