"""Preference alignment: DPO and ORPO on pairs of answers to one prompt."""

from typing import Any

import torch
from torch import Tensor

from paft.chat.tokens import EncodedPair
from paft.config import DPO, ORPO, DPOLoss, NLLScope
from paft.forward.pairs import REJECTED, PairTensors, answer_logps, pair_tensors
from paft.losses import dpo_loss, orpo_loss
from paft.training.batches import GlobalBatch
from paft.training.module import BranchModule
from paft.training.reference import ScoredPair

START_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.02}
"""How far policy and reference may be apart before the first step, as a share of the log-probability.

Ten times what was seen."""


class DPOModule(BranchModule):
    """Direct preference optimisation; the reference policy is the base model.

    What it says of the pairs comes with rows that went through the `reference` stage; for others it is the backbone
    with its adapter off.

    Logs chosen and rejected rewards and log-probabilities apart, so that a falling chosen likelihood shows.
    """

    config: DPO

    def micro_loss(
        self, rows: list[EncodedPair], batch: GlobalBatch[Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        pairs = pair_tensors(self.backbone, rows, self.pad_id).to(self.device)
        chosen, rejected = self._logps(pairs)
        reference_chosen, reference_rejected = self._reference(rows, pairs)
        if self.training and batch.step == 0:
            allowed = START_TOLERANCE[self.backbone.base.dtype]
            refuse_moved_start((chosen, reference_chosen), (rejected, reference_rejected), allowed=allowed)
        c = self.config
        losses = dpo_loss(
            chosen,
            rejected,
            reference_chosen,
            reference_rejected,
            beta=c.beta,
            loss=c.loss.value,
            label_smoothing=c.label_smoothing,
        )
        rewards = (
            c.beta * (chosen - reference_chosen).detach(),
            c.beta * (rejected - reference_rejected).detach(),
        )
        return losses.sum() / batch.num_rows, pair_values(chosen, rejected, rewards, batch.num_rows)

    def _logps(self, pairs: PairTensors) -> tuple[Tensor, Tensor]:
        """[B] each: sums over the chosen and the rejected answers, or means for IPO."""
        return answer_logps(self.backbone, pairs, mean=self.config.loss is DPOLoss.ipo)

    def _reference(self, rows: list[EncodedPair], pairs: PairTensors) -> tuple[Tensor, Tensor]:
        """The same under the reference policy: as its own stage found them, or by another forward pass."""
        mean = self.config.loss is DPOLoss.ipo
        known = [row.reference for row in rows if isinstance(row, ScoredPair)]
        if len(known) < len(rows):
            with self.backbone.reference():
                return self._logps(pairs)
        chosen, rejected = torch.tensor(known, device=self.device).unbind(1)
        lengths = pairs.answer_sums(torch.ones_like(pairs.labels)) if mean else (1, 1)
        return chosen / lengths[0], rejected / lengths[1]


class ORPOModule(BranchModule):
    """Odds-ratio preference optimisation: likelihood of the chosen text and the log odds ratio, no reference."""

    config: ORPO

    def micro_loss(
        self, rows: list[EncodedPair], batch: GlobalBatch[Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        whole = self.config.nll_scope is NLLScope.sequence
        pairs = pair_tensors(self.backbone, rows, self.pad_id, prompt_labels=whole).to(self.device)
        logps = pairs.logps(self.backbone)
        chosen, rejected = pairs.answer_means(logps)
        num_nll_tokens = batch.num_sequence_targets if whole else batch.num_chosen_targets
        nll = -(logps * (pairs.answers != REJECTED)).sum() / num_nll_tokens
        ratio = (
            orpo_loss(chosen, rejected, torch.zeros_like(chosen), beta=self.config.beta).sum()
            / batch.num_rows
        )
        beta = self.config.beta
        values = pair_values(
            chosen, rejected, (beta * chosen.detach(), beta * rejected.detach()), batch.num_rows
        )
        return nll + ratio, values | {"nll": nll, "odds_ratio_loss": ratio}


def pair_values(
    chosen: Tensor, rejected: Tensor, rewards: tuple[Tensor, Tensor], num_rows: int
) -> dict[str, Tensor]:
    """This micro-batch's part of the averages that tell how a preference run is doing."""
    chosen_rewards, rejected_rewards = rewards
    sums = {
        "chosen_logps": chosen.detach(),
        "rejected_logps": rejected.detach(),
        "chosen_rewards": chosen_rewards,
        "rejected_rewards": rejected_rewards,
        "margins": chosen_rewards - rejected_rewards,
        "accuracy": (chosen_rewards > rejected_rewards).float(),
    }
    return {name: value.sum() / num_rows for name, value in sums.items()}


def refuse_moved_start(*pairs: tuple[Tensor, Tensor], allowed: float) -> None:
    """At step 0 the new adapter is zero, so policy and reference must agree; else every reward is off.

    They agree to rounding: a bfloat16 model's answers move by up to a few parts in a thousand with the rows they
    share a forward pass with, while another row's reference is off by a large part of itself.
    """
    for policy, reference in pairs:
        off = (policy.detach() - reference).abs() / reference.abs().clamp(min=1)
        worst = off.max().item()
        if worst > allowed:
            i = int(off.argmax())
            raise ValueError(
                f"policy and reference log-probabilities differ by {worst:.3g} of their size before the first step "
                f"({policy[i].item():.6g} and {reference[i].item():.6g}); they must be equal. The adapter does not "
                "start at zero, or the reference is of another model or other rows"
            )
