"""A lambda that moves while a branch trains, so that the finished delta is as sparse as asked for.

Sparsity follows lambda about as logit(s) = a log(lambda) + c, so the controller works on these two scales, where its
gain means the same everywhere. With the error e = logit(wanted) - logit(measured), at most `LARGEST` either way, it
moves lambda after the warm-up, every `target_every` = k of N steps, by

    log(lambda) += gain * k / N * e + DAMPING * (change of e since the last measurement).

What is wanted rises from 0 to the target over the first `RAMP` of the run, as the sparsity of a fixed lambda does:
while the learning rate falls, or earlier where proximal steps make zeros. To want the target from the start would push
lambda far past the value that ends there. A gain of 5 moves log(lambda) by 1 where the error stays 1 for a fifth of
the run.

Limitations: a step of Adam moves a factor by about the learning rate whatever lambda is, so sparsity comes no faster
than that, and at the end of a schedule that ends at 0 nothing moves any more. Start lambda within a factor of ten or
so, and read the sparsity that was reached in sparsity.json.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from paft.config import L1Config, L1Method, Sparsity
from paft.delta.statistics import SMALL, LowRank, dense

SAMPLE_ROWS = 64
"""Rows of each layer's delta that a measurement looks at, evenly spaced."""
LARGEST = 1.0
DAMPING = 0.5
RAMP = {L1Method.subgradient: 0.9, L1Method.proximal: 0.5}
"""Share of the run over which what is wanted rises to the target."""


class SparsityControl:
    """The weight of the penalty: `config.weight`, and with a target what the controller makes of it."""

    def __init__(self, config: L1Config, *, num_steps: int, first_step: int) -> None:
        self.config, self.num_steps, self.first_step = config, num_steps, first_step
        self.weight = config.weight
        self.error: float | None = None

    def state(self) -> dict[str, float | None]:
        """What a checkpoint holds of it."""
        return {"weight": self.weight, "error": self.error}

    def load(self, state: Mapping[str, Any]) -> None:
        self.weight, self.error = state["weight"], state["error"]

    def due(self, step: int) -> bool:
        """Whether to measure when `step` optimizer steps have been made."""
        controlled = self.config.target_sparsity is not None
        return controlled and step >= max(self.first_step, 1) and step % self.config.target_every == 0

    def update(self, measured: float, step: int) -> None:
        """Move the weight, given the share measured after `step` steps."""
        assert self.config.target_sparsity is not None
        target = self.config.target_sparsity * min(1.0, step / (RAMP[self.config.method] * self.num_steps))
        error = min(max(_logit(target) - _logit(measured), -LARGEST), LARGEST)
        change = 0.0 if self.error is None else error - self.error
        elapsed = self.config.target_every / self.num_steps
        self.weight *= math.exp(self.config.target_gain * elapsed * error + DAMPING * change)
        self.error = error


def _logit(share: float) -> float:
    share = min(max(share, 1e-3), 1 - 1e-3)
    return math.log(share / (1 - share))


@torch.no_grad()
def measured_share(deltas: Iterable[LowRank | Tensor], measure: Sparsity) -> float:
    """The share of the delta that counts as zero by `measure`, mean over layers, of `SAMPLE_ROWS` rows of each.

    `deltas` are (A [r, in], B [out, r], scaling) or matrices [out, in], whole.
    """
    shares = [_share(dense(_some_rows(delta)).abs(), measure) for delta in deltas]
    return float(torch.stack(shares).mean())


def _some_rows(delta: LowRank | Tensor) -> LowRank | Tensor:
    if isinstance(delta, Tensor):
        return delta[:: max(1, len(delta) // SAMPLE_ROWS)]
    A, B, scaling = delta
    return LowRank(A, B[:: max(1, len(B) // SAMPLE_ROWS)], scaling)


def _share(magnitude: Tensor, measure: Sparsity) -> Tensor:
    match measure:
        case Sparsity.below_threshold:
            small = magnitude < SMALL
        case Sparsity.zero:
            small = magnitude == 0
        case Sparsity.below_tenth_rms:
            rms = magnitude.square().mean().sqrt()
            small = (magnitude < 0.1 * rms) | (rms == 0)
    return small.float().mean()
