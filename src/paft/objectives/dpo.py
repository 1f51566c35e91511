"""Direct preference optimisation and its variants of one formula."""

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from paft.config import require
from paft.config.checks import UNLESS_DEFAULT
from paft.objectives.objective import Objective, PairLogps

if TYPE_CHECKING:
    from torch import Tensor


class DPOLoss(str, Enum):
    """`sigmoid`: DPO's own (Rafailov et al. 2023); `robust` to flipped labels (Chowdhury et al. 2024, 2403.00409);
    `hinge` (Zhao et al. 2023); `ipo`, of means per token (Azar et al. 2023); `sigmoid_norm`: sigmoid of means per token
    (Lambert et al. 2024, 2411.15124); `exo_pair` (Ji et al. 2024, 2402.00856, equation 16); `discopop` (Lu et al.
    2024, 2406.08414). By each answer's own reward, not by their difference alone: `apo_zero` and `apo_down`
    (D'Oosterlinck et al. 2024, 2408.06266), `dpop` (Pal et al. 2024, 2402.13228), `nca_pair` (Chen et al. 2024,
    2402.05369), `bco_pair` (Jung et al. 2024, 2404.04656, without the shift), `sppo_hard` (Wu et al. 2024,
    2405.00675)."""

    sigmoid = "sigmoid"
    ipo = "ipo"
    hinge = "hinge"
    robust = "robust"
    exo_pair = "exo_pair"
    nca_pair = "nca_pair"
    bco_pair = "bco_pair"
    sppo_hard = "sppo_hard"
    apo_zero = "apo_zero"
    apo_down = "apo_down"
    dpop = "dpop"
    discopop = "discopop"
    sigmoid_norm = "sigmoid_norm"


class FDivergence(str, Enum):
    """What holds the policy to the reference (Wang et al. 2023, 2309.16240); `reverse_kl` is DPO's own."""

    reverse_kl = "reverse_kl"
    forward_kl = "forward_kl"
    js_divergence = "js_divergence"
    alpha_divergence = "alpha_divergence"


PER_TOKEN = (DPOLoss.ipo, DPOLoss.sigmoid_norm)
"""Losses of means per token."""
SMOOTHED = (DPOLoss.sigmoid, DPOLoss.sigmoid_norm, DPOLoss.robust, DPOLoss.exo_pair)
"""Losses that take labels to be flipped in some share."""
OF_MARGIN = (*SMOOTHED, DPOLoss.ipo, DPOLoss.hinge, DPOLoss.discopop)
"""Losses of h alone: those in which the log-ratio may be another divergence's score."""


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
    """Share of labels taken to be flipped: conservative DPO with sigmoid; robust and exo_pair need one, as 0.1 and
    0.001."""
    reference: ReferenceFrom = ReferenceFrom.stage
    """`online` is for a base that fits on no single device."""
    f_divergence: FDivergence = field(default=FDivergence.reverse_kl, metadata=UNLESS_DEFAULT)
    f_alpha: float = field(default=0.5, metadata=UNLESS_DEFAULT)
    """The alpha of alpha_divergence; near 1 it is reverse_kl."""
    sft_weight: float = field(default=0.0, metadata=UNLESS_DEFAULT)
    """Weight of the mean negative log-likelihood per token of the chosen answers (RPO, 2404.19733)."""
    ld_alpha: float = field(default=1.0, metadata=UNLESS_DEFAULT)
    """Weight of the longer answer's tokens beyond the length of the shorter one (LD-DPO, 2409.06411); 1: as others."""
    dpop_lambda: float = field(default=50.0, metadata=UNLESS_DEFAULT)
    """Of dpop: the penalty of a chosen answer that is less likely than under the reference."""
    discopop_tau: float = field(default=0.05, metadata=UNLESS_DEFAULT)
    """Of discopop: the temperature with which its two losses are mixed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.beta > 0, "preference.beta", self.beta, "positive")
        require(
            0 <= self.label_smoothing < 0.5, "preference.label_smoothing", self.label_smoothing, "in [0, 0.5)"
        )
        require(self.sft_weight >= 0, "preference.sft_weight", self.sft_weight, "at least 0")
        require(0 <= self.ld_alpha <= 1, "preference.ld_alpha", self.ld_alpha, "in [0, 1]")
        require(self.dpop_lambda >= 0, "preference.dpop_lambda", self.dpop_lambda, "at least 0")
        require(self.discopop_tau > 0, "preference.discopop_tau", self.discopop_tau, "positive")
        require(
            self.f_alpha != 1,
            "preference.f_alpha",
            self.f_alpha,
            "other than 1, which is f_divergence=reverse_kl",
        )
        self._refuse_unused()

    def _refuse_unused(self) -> None:
        """A setting that the loss does not read would be a difference in name alone."""
        if self.label_smoothing and self.loss not in SMOOTHED:
            raise ValueError(
                f"preference.label_smoothing={self.label_smoothing} needs preference.loss={_one_of(SMOOTHED)}, "
                f"got {self.loss.value!r}; set it to 0"
            )
        if not self.label_smoothing and self.loss in (DPOLoss.robust, DPOLoss.exo_pair):
            raise ValueError(
                f"preference.loss={self.loss.value} needs preference.label_smoothing above 0, got 0; "
                "give 0.1 for robust, 0.001 for exo_pair"
            )
        if self.f_divergence is not FDivergence.reverse_kl and self.loss not in OF_MARGIN:
            raise ValueError(
                f"preference.f_divergence={self.f_divergence.value} needs preference.loss={_one_of(OF_MARGIN)}, "
                f"got {self.loss.value!r}; set it to reverse_kl"
            )

    @property
    def needs_reference(self) -> bool:
        return True

    @property
    def has_reference_stage(self) -> bool:
        return self.reference is ReferenceFrom.stage

    @property
    def per_token(self) -> bool:
        return self.loss in PER_TOKEN

    @property
    def weight_of_nll(self) -> float:
        return self.sft_weight

    @property
    def weight_of_tail(self) -> float:
        return self.ld_alpha

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
            discopop_tau=self.discopop_tau,
            dpop_lambda=self.dpop_lambda,
            f_divergence=self.f_divergence.value,
            f_alpha=self.f_alpha,
            tokens=(logps.chosen_tokens, logps.rejected_tokens) if self.per_token else None,
        )


def _one_of(losses: tuple[DPOLoss, ...]) -> str:
    return ", ".join(loss.value for loss in losses[:-1]) + f" or {losses[-1].value}"
