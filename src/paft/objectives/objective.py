"""What a preference objective is: options as a dataclass, and the loss of pairs of answers, or of single ones.

A new one is a class in a file of `paft.objectives`:

    @dataclass
    class SLiC(Objective, name="slic", title="SLiC", source="Zhao et al. 2023, arXiv:2305.10425"):
        \"""The chosen answer is likelier than the rejected one by a margin, and likely itself; no reference.\"""

        margin: float = 1.0

        @property
        def weight_of_nll(self) -> float:
            return 1.0

        def losses(self, logps: PairLogps) -> Tensor:
            return (self.margin - logps.chosen + logps.rejected).clamp(min=0)

One that learns from unpaired rows derives from `UnpairedObjective`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from paft.config import PreferenceConfig

if TYPE_CHECKING:
    from torch import Tensor


class PairLogps(NamedTuple):
    """Log-probabilities of B pairs of answers, float32 [B]: sums over tokens, or means with `per_token`."""

    chosen: "Tensor"
    rejected: "Tensor"
    chosen_tokens: "Tensor"
    """[B]: tokens of the answers."""
    rejected_tokens: "Tensor"
    reference_chosen: "Tensor | None" = None
    """The same under the base model, for an objective that needs it."""
    reference_rejected: "Tensor | None" = None


@dataclass
class Objective(PreferenceConfig):
    """A preference objective: the mean of `losses` over pairs, and of the chosen text's likelihood with a weight."""

    term: ClassVar[str] = "preference_loss"
    """The name that the mean of `losses` is logged under where it is not the whole loss."""

    @property
    def per_token(self) -> bool:
        """Whether log-probabilities are means per token."""
        return False

    @property
    def weight_of_nll(self) -> float:
        """Weight of the mean negative log-likelihood per token of the chosen answers (of their prompts too, if
        `learns_prompt`)."""
        return 0.0

    @property
    def reward_scale(self) -> float:
        """What a log-probability, above the reference's where there is one, is multiplied with to be a reward."""
        return 1.0

    def losses(self, logps: PairLogps) -> "Tensor":
        """The loss of each pair, float32 [B]."""
        raise NotImplementedError(f"{type(self).__name__} must say what its loss is")


class AnswerLogps(NamedTuple):
    """Log-probabilities of B single answers, sums over their tokens: float32 [B]."""

    policy: "Tensor"
    reference: "Tensor"
    """The same under the base model."""
    desirable: "Tensor"
    """Bool [B]: whether each is judged good."""
    kl: "Tensor | float" = 0.0
    """Scalar without a gradient, of the global batch; 0 unless the objective `needs_kl`."""


@dataclass
class UnpairedObjective(PreferenceConfig):
    """An objective of answers that are judged one by one: the mean of `losses` over rows."""

    rows: ClassVar[Literal["pairs", "unpaired"]] = "unpaired"

    @property
    def reward_scale(self) -> float:
        """What a log-probability above the reference's is multiplied with to be a reward."""
        return 1.0

    def losses(self, logps: AnswerLogps) -> "Tensor":
        """The loss of each answer, float32 [B]."""
        raise NotImplementedError(f"{type(self).__name__} must say what its loss is")
