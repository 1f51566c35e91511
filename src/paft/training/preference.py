"""Preference alignment: one module for every objective, on pairs of answers to one prompt or on single answers."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from paft.chat.tokens import EncodedAnswer, EncodedPair
from paft.config import PreferenceConfig
from paft.forward.pairs import REJECTED, PairTensors, pair_tensors
from paft.losses import mean_nll, reference_point
from paft.model.policy import Policy
from paft.objectives.objective import AnswerLogps, Objective, PairLogps, UnpairedObjective
from paft.training.batches import GlobalBatch
from paft.training.module import BranchModule
from paft.training.reference import ScoredPair
from paft.training.unpaired import answer_logps, answer_values

START_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05}
"""How far policy and reference may be apart before the first step; see `refuse_moved_start`.

Seen of 192 answers of 12 tokens on a processor with AMX, where bfloat16 differs most with the rows that share a pass:
up to 0.03 for one answer, 0.01 in the mean of a pass; with references of other rows that mean is 0.18 or more."""


class PreferenceModule(BranchModule):
    """Trains by the losses of its config, an `Objective` or an `UnpairedObjective`.

    What the reference policy says of the rows comes with those that went through the `reference` stage; for others it
    is the backbone with its adapter off. Logs chosen and rejected rewards and log-probabilities apart, so that a
    falling chosen likelihood shows.

    A reference point (`needs_kl`) is of the whole global batch: all its rows are forwarded without a gradient, by all
    devices, before the first is learnt from, so that here too neither micro-batch nor device changes the update.
    """

    config: PreferenceConfig

    def training_step(self, batch: GlobalBatch[Any]) -> None:
        super().training_step(self.with_reference_point(batch))

    def averages(self, batch: GlobalBatch[Any]) -> dict[str, Tensor]:
        return super().averages(self.with_reference_point(batch))

    @torch.no_grad()
    def with_reference_point(self, batch: GlobalBatch[Any]) -> GlobalBatch[Any]:
        """The batch with its reference point, if the objective has one and there are rows for it."""
        places = batch.places or range(len(batch.rows))
        located = [
            (row.mismatched, place)
            for row, place in zip(batch.rows, places, strict=True)
            if isinstance(row, EncodedAnswer)
        ]
        if not (self.config.needs_kl and located):
            return batch
        place_of = {id(row): place for row, place in located}
        total = torch.zeros((), dtype=torch.float64)
        for rows, share in self._passes(replace(batch, rows=[row for row, _ in located])):
            lengths = [row.row_tokens for row in rows]
            self.backbone.rows.begin(batch.step, [place_of[id(row)] for row in rows], lengths)
            logps = self._answer_logps(rows, batch)
            total = total + share * (logps.policy - logps.reference).double().sum()
        return replace(batch, kl=reference_point(self._total(total), batch.num_rows))

    def _answer_logps(self, rows: Sequence[EncodedAnswer], batch: GlobalBatch[Any]) -> AnswerLogps:
        logps = answer_logps(self.backbone, rows, self.pad_id)
        if self.training and batch.step == 0:
            tokens = torch.tensor([len(row.answer_ids) for row in rows], device=self.device)
            self._refuse_moved_start(logps.policy, logps.reference, tokens)
        return logps

    def micro_loss(self, rows: list[Any], batch: GlobalBatch[Any]) -> tuple[Tensor, dict[str, Tensor]]:
        loss_of = self._answers_loss if isinstance(rows[0], EncodedAnswer) else self._pairs_loss
        return loss_of(rows, batch)

    def _answers_loss(
        self, rows: list[EncodedAnswer], batch: GlobalBatch[Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        c = self.config
        assert isinstance(c, UnpairedObjective)
        logps = self._answer_logps(rows, batch)
        values = answer_values(logps, c.reward_scale, batch.num_rows, batch.num_good)
        if batch.kl is not None:
            logps = logps._replace(kl=batch.kl)
            values["kl"] = batch.kl * len(rows) / batch.num_rows
        if not self.training:  # what there is none of is left out: a finished training's metrics hold no NaN
            values = {name: value for name, value in values.items() if not value.isnan()}
        return c.losses(logps).sum() / batch.num_rows, values

    def _pairs_loss(
        self, rows: list[EncodedPair], batch: GlobalBatch[Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert isinstance(self.config, Objective)
        c = self.config
        pairs = pair_tensors(self.backbone, rows, self.pad_id, prompt_labels=c.learns_prompt).to(self.device)
        logps_RT = pairs.logps(self.backbone)
        logps = pair_logps(self.backbone, c, rows, pairs, logps_RT)
        if self.training and batch.step == 0 and c.needs_reference:
            assert logps.reference_chosen is not None and logps.reference_rejected is not None
            self._refuse_moved_start(
                torch.cat([logps.chosen, logps.rejected]),
                torch.cat([logps.reference_chosen, logps.reference_rejected]),
                torch.cat([logps.chosen_tokens, logps.rejected_tokens]),
            )
        loss = c.losses(logps).sum() / batch.num_rows
        values = pair_values(logps, c.reward_scale, batch.num_rows)
        if not c.weight_of_nll:
            return loss, values
        num_tokens = batch.num_sequence_targets if c.learns_prompt else batch.num_chosen_targets
        nll = mean_nll(logps_RT * (pairs.answers != REJECTED), num_tokens)
        return c.weight_of_nll * nll + loss, values | {"nll": nll, c.term: loss}

    def _refuse_moved_start(self, policy_N: Tensor, reference_N: Tensor, tokens_N: Tensor) -> None:
        per_token = isinstance(self.config, Objective) and self.config.per_token
        tokens_N = torch.ones_like(tokens_N) if per_token else tokens_N
        allowed = START_TOLERANCE[self.backbone.base.dtype]
        refuse_moved_start(policy_N, reference_N, tokens_N, allowed=allowed)


def pair_logps(
    policy: Policy, objective: Objective, rows: Sequence[EncodedPair], pairs: PairTensors, logps_RT: Tensor
) -> PairLogps:
    """What the objective's loss is of: `logps_RT` are the policy's of the labels of `pairs`, which are `rows`."""
    tokens = pairs.answer_sums(torch.ones_like(logps_RT))
    ones = torch.ones_like(tokens[0])
    per = tokens if objective.per_token else (ones, ones)
    sums = weighted_sums(pairs, logps_RT, objective.weight_of_tail)
    logps = PairLogps(sums[0] / per[0], sums[1] / per[1], *tokens)
    if not objective.needs_reference:
        return logps
    chosen, rejected = reference_sums(policy, rows, pairs, objective.weight_of_tail)
    return logps._replace(reference_chosen=chosen / per[0], reference_rejected=rejected / per[1])


def weighted_sums(pairs: PairTensors, logps_RT: Tensor, weight_of_tail: float) -> tuple[Tensor, Tensor]:
    """Sums [B] over either answer, what the longer one has beyond the shorter one with a weight."""
    if weight_of_tail == 1:
        return pairs.answer_sums(logps_RT)
    return pairs.answer_sums(torch.where(pairs.within_shorter(), logps_RT, weight_of_tail * logps_RT))


def reference_sums(
    policy: Policy, rows: Sequence[EncodedPair], pairs: PairTensors, weight_of_tail: float
) -> tuple[Tensor, Tensor]:
    """`weighted_sums` under the reference policy: as its own stage found them, or by another forward pass."""
    scored = [row.reference for row in rows if isinstance(row, ScoredPair)]
    if len(scored) < len(rows):
        with policy.reference():
            return weighted_sums(pairs, pairs.logps(policy), weight_of_tail)
    chosen, rejected, *shorter = torch.tensor(scored, device=pairs.input_ids.device).unbind(1)
    if not shorter:
        return chosen, rejected
    return shorter[0].lerp(chosen, weight_of_tail), shorter[1].lerp(rejected, weight_of_tail)


def pair_values(logps: PairLogps, reward_scale: float, num_rows: int) -> dict[str, Tensor]:
    """This micro-batch's part of the averages that tell how a preference run is doing."""
    chosen, rejected = logps.chosen.detach(), logps.rejected.detach()
    above_chosen = 0 if logps.reference_chosen is None else logps.reference_chosen
    above_rejected = 0 if logps.reference_rejected is None else logps.reference_rejected
    chosen_rewards = reward_scale * (chosen - above_chosen)
    rejected_rewards = reward_scale * (rejected - above_rejected)
    sums = {
        "chosen_logps": chosen,
        "rejected_logps": rejected,
        "chosen_rewards": chosen_rewards,
        "rejected_rewards": rejected_rewards,
        "margins": chosen_rewards - rejected_rewards,
        "accuracy": (chosen_rewards > rejected_rewards).float(),
    }
    return {name: value.sum() / num_rows for name, value in sums.items()}


def refuse_moved_start(policy_N: Tensor, reference_N: Tensor, tokens_N: Tensor, *, allowed: float) -> None:
    """At step 0 the new adapter is zero, so policy and reference must agree; else every reward is off.

    They agree to rounding: a bfloat16 model's answers move with the rows they share a forward pass with, by a part of
    themselves and by some of a nat for each token. What is held against `allowed` is the mean over the answers of a
    pass of |policy - reference| / (|reference| + tokens): one short answer may be further off.
    """
    policy = policy_N.detach()
    off = (policy - reference_N).abs() / (reference_N.abs() + tokens_N)
    mean = off.mean().item()
    if not mean <= allowed:
        i = int(off.argmax())
        raise ValueError(
            f"policy and reference log-probabilities differ by {mean:.3g} of their size before the first step "
            f"(most in {policy[i].item():.6g} and {reference_N[i].item():.6g}); they must be equal. The adapter does "
            "not start at zero, or the reference is of another model or other rows"
        )
