"""lm-eval's Hugging Face model with log-likelihoods computed where they are asked for, and nowhere else.

Two savings, neither of which changes a score: the output head is applied only to positions of a continuation,
and a request whose tokens are the beginning of another's rides on that one's forward pass (the letters of a
multiple-choice question ride on the worked answer to the same question).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from tqdm import tqdm

from paft.losses import BLOCK_N

MAX_TOKENS = 4096
"""Beyond this many tokens at once a forward pass gains nothing, and one long sequence pads many short ones."""
Request = tuple[Any, list[int], list[int]]
"""(text, context tokens, continuation tokens), as lm-eval passes them."""


@dataclass
class Forward:
    """One sequence to run through the model and the requests read off it: (index, start, targets)."""

    tokens: list[int]
    riders: list[tuple[int, int, list[int]]] = field(default_factory=list)


def share_forwards(requests: Sequence[Request], max_length: int) -> list[Forward]:
    """Put every request on a forward pass whose tokens begin with its own; longest sequences first.

    A request of more than `max_length` + 1 tokens loses its oldest ones, as in lm-eval. Raises `ValueError`
    for a continuation that does not fit alone.
    """
    wanted = []
    for index, (_, context, continuation) in enumerate(requests):
        if len(continuation) > max_length:
            raise ValueError(
                f"a continuation of {len(continuation)} tokens does not fit the model's {max_length}; "
                "leave the task out or choose a model with a longer context"
            )
        tokens = [*context, *continuation][-(max_length + 1) :]
        wanted.append((tokens[:-1], index, len(tokens) - len(continuation) - 1, continuation))
    forwards: list[Forward] = []
    # in descending order whatever begins with some tokens comes before those tokens themselves
    for tokens, index, start, continuation in sorted(wanted, key=lambda w: (w[0], w[1]), reverse=True):
        if not forwards or forwards[-1].tokens[: len(tokens)] != tokens:
            forwards.append(Forward(tokens))
        forwards[-1].riders.append((index, start, continuation))
    return sorted(forwards, key=lambda f: len(f.tokens), reverse=True)


def batches(forwards: Sequence[Forward], size: int) -> Iterator[list[Forward]]:
    """Up to `size` sequences, and no more than `MAX_TOKENS` with their padding, at once; longest first."""
    batch: list[Forward] = []
    for forward in forwards:
        width = len(batch[0].tokens) if batch else 0
        if batch and (len(batch) == size or (len(batch) + 1) * width > MAX_TOKENS):
            yield batch
            batch = []
        batch.append(forward)
    if batch:
        yield batch


class SparingLM(HFLM):
    """`HFLM` with the two savings of this module."""

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """(log-likelihood of the continuation, whether greedy decoding gives it) of every request."""
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        forwards = share_forwards(requests, self.max_length)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="log-likelihoods") as bar:
            for batch in batches(forwards, int(self.batch_size)):
                for index, answer in self._score(batch):
                    answers[index] = answer
                bar.update(sum(len(f.riders) for f in batch))
        for (text, _, _), answer in zip(requests, answers, strict=True):
            if text is not None:
                self.cache_hook.add_partial("loglikelihood", text, answer)
        return answers

    @torch.inference_mode()
    def _score(self, batch: list[Forward]) -> list[tuple[int, tuple[float, bool]]]:
        width = len(batch[0].tokens)
        # right padding under causal attention never reaches a real token
        padded = [f.tokens + [0] * (width - len(f.tokens)) for f in batch]
        backbone = getattr(self.model, self.model.base_model_prefix)
        hidden_BTH = backbone(
            input_ids=torch.tensor(padded, device=self.device), use_cache=False
        ).last_hidden_state
        spans = [(row, *rider) for row, f in enumerate(batch) for rider in f.riders]
        selected_NH = torch.cat([hidden_BTH[row, start : start + len(c)] for row, _, start, c in spans])
        targets_N = torch.tensor([t for *_, c in spans for t in c], device=self.device)
        logps_N, greedy_N = self._targets(selected_NH, targets_N)
        sizes = [len(c) for *_, c in spans]
        pieces = zip(spans, logps_N.split(sizes), greedy_N.split(sizes), strict=True)
        return [
            (index, (float(logps.sum()), bool(greedy.all()))) for (_, index, _, _), logps, greedy in pieces
        ]

    def _targets(self, hidden_NH: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        """Float32 log-probability of each target, and whether it is the likeliest token."""
        head_VH = self.model.get_output_embeddings().weight
        logps, greedy = [], []
        for hidden, targets in zip(hidden_NH.split(BLOCK_N), targets_N.split(BLOCK_N), strict=True):
            logits_NV = (hidden @ head_VH.T).float()
            picked = logits_NV.gather(1, targets[:, None]).squeeze(1)
            logps.append(picked - logits_NV.logsumexp(-1))
            greedy.append(logits_NV.argmax(-1) == targets)
        return torch.cat(logps), torch.cat(greedy)
