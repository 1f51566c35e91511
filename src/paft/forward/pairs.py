"""Preference pairs as tensors: the prompt forwarded once for both answers, or every answer in a row of its own.

With a shared prompt a pair is one row: prompt, chosen answer, the prompt's last token again, rejected answer.
Attention hides either answer from the other, and positions go on from the prompt in both, so every token sees
exactly what it would in a row of its own (tests/test_pairs.py), at two thirds of the tokens or less.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from paft.chat.tokens import IGNORE, EncodedPair
from paft.forward.batches import pad, placed
from paft.model.policy import Policy

PROMPT, CHOSEN, REJECTED, PADDING = range(4)


class PairTensors(NamedTuple):
    """B pairs as R rows of T tokens; R is B with shared prompts, else 2B: all chosen rows, then all rejected."""

    input_ids: Tensor
    """int64 [R, T]."""
    labels: Tensor
    """int64 [R, T]: the answers; with `prompt_labels` also the prompt tokens that have a past, once a pair."""
    answers: Tensor
    """int64 [R, T]: CHOSEN or REJECTED where the label is an answer's, else PROMPT."""
    lengths: Tensor
    """int64 [R]: tokens of each row before its padding."""
    segments: Tensor | None = None
    """int64 [R, T]: PROMPT tokens are seen by all, others by their own segment; None: plain causal rows."""
    positions: Tensor | None = None
    """int64 [R, T]: position of each token in the text it belongs to."""
    columns: Tensor | None = None
    """int64 [R, T]: the column each token has, or would have, where its pair is one row; None: its own."""

    def to(self, device: torch.device) -> "PairTensors":
        """On a device, all but the lengths and segments, by which the host cuts rows."""
        moved: dict[str, Any] = {
            name: placed(tensor, device)
            for name, tensor in self._asdict().items()
            if tensor is not None and name not in ("lengths", "segments")
        }
        return self._replace(**moved)

    def logps(self, policy: Policy) -> Tensor:
        """Float32 [R, T]: log-probability of each label."""
        logps: Tensor = policy(
            self.input_ids, self.labels, self.lengths, self.segments, self.positions, self.columns
        )
        return logps

    def answer_sums(self, values_RT: Tensor) -> tuple[Tensor, Tensor]:
        """Sums [B] of per-label values over the chosen and over the rejected answers."""
        pairs = len(values_RT) if self.segments is not None else len(values_RT) // 2
        chosen, rejected = (
            (values_RT * (self.answers == answer)).sum(1).view(-1, pairs).sum(0)
            for answer in (CHOSEN, REJECTED)
        )
        return chosen, rejected

    def within_shorter(self) -> Tensor:
        """Bool [R, T]: which labels of an answer are among its first so many as the pair's shorter answer has."""
        shorter = torch.minimum(*self.answer_sums(torch.ones_like(self.answers)))
        limits = shorter.repeat(len(self.answers) // len(shorter))[:, None]
        places = torch.zeros_like(self.answers)
        for answer in (CHOSEN, REJECTED):
            here = self.answers == answer
            places += here.cumsum(1) * here
        return (places > 0) & (places <= limits)

    def answer_means(self, values_RT: Tensor) -> tuple[Tensor, Tensor]:
        """The same per label."""
        sums, lengths = self.answer_sums(values_RT), self.answer_sums(torch.ones_like(values_RT))
        return sums[0] / lengths[0], sums[1] / lengths[1]


def pair_tensors(
    policy: Policy, pairs: Sequence[EncodedPair], pad_id: int, *, prompt_labels: bool = False
) -> PairTensors:
    """One row a pair where the policy's attention allows it, two elsewhere."""
    shared = policy.can_share_prompts(max(pair.row_tokens for pair in pairs))
    lay_out = shared_prompt_tensors if shared else two_row_tensors
    return lay_out(pairs, pad_id, prompt_labels=prompt_labels)


def answer_logps(policy: Policy, pairs: PairTensors, *, mean: bool = False) -> tuple[Tensor, Tensor]:
    """Float32 [B] each: log-probability of the chosen and the rejected answers; `mean` is per token."""
    logps = pairs.logps(policy)
    return pairs.answer_means(logps) if mean else pairs.answer_sums(logps)


def shared_prompt_tensors(
    pairs: Sequence[EncodedPair], pad_id: int, *, prompt_labels: bool = False
) -> PairTensors:
    """One row a pair."""
    ids, labels, answers, segments, positions = [], [], [], [], []
    for prompt, chosen, rejected in pairs:
        start, last = len(prompt), prompt[-1:]
        ids.append([*prompt, *chosen, *last, *rejected])
        labels.append([*prompt_part(prompt, prompt_labels), *chosen, IGNORE, *rejected])
        answers.append([PROMPT] * start + [CHOSEN] * len(chosen) + [PROMPT] + [REJECTED] * len(rejected))
        segments.append(
            [PROMPT] * (start - 1) + [CHOSEN] * (1 + len(chosen)) + [REJECTED] * (1 + len(rejected))
        )
        positions.append([*range(start + len(chosen)), *range(start - 1, start + len(rejected))])
    return PairTensors(
        pad(ids, pad_id),
        pad(labels, IGNORE),
        pad(answers, PROMPT),
        torch.tensor([*map(len, ids)]),
        pad(segments, PADDING),
        pad(positions, 0),
    )


def two_row_tensors(pairs: Sequence[EncodedPair], pad_id: int, *, prompt_labels: bool = False) -> PairTensors:
    """Two rows a pair, for attention that takes no mask of ours."""
    rows = [(p.prompt_ids, p.chosen_ids, CHOSEN) for p in pairs]
    rows += [(p.prompt_ids, p.rejected_ids, REJECTED) for p in pairs]
    return PairTensors(
        pad([[*prompt, *answer] for prompt, answer, _ in rows], pad_id),
        pad([[*prompt_part(p, prompt_labels and kind == CHOSEN), *a] for p, a, kind in rows], IGNORE),
        pad([[PROMPT] * len(prompt) + [kind] * len(answer) for prompt, answer, kind in rows], PROMPT),
        torch.tensor([len(prompt) + len(answer) for prompt, answer, _ in rows]),
        columns=pad([*map(_chosen_columns, pairs), *map(_rejected_columns, pairs)], 0),
    )


def _chosen_columns(pair: EncodedPair) -> Sequence[int]:
    return range(len(pair.prompt_ids) + len(pair.chosen_ids))


def _rejected_columns(pair: EncodedPair) -> Sequence[int]:
    """The prompt's, whose last token stands a second time before the rejected answer."""
    return [
        *range(len(pair.prompt_ids) - 1),
        *range(pair.row_tokens - len(pair.rejected_ids) - 1, pair.row_tokens),
    ]


def prompt_part(prompt: list[int], wanted: bool) -> list[int]:
    """The prompt's labels: its first token has no past."""
    return [IGNORE, *prompt[1:]] if wanted else [IGNORE] * len(prompt)
