"""The L1 penalty as a proximal step after each optimizer step: what it does not move past zero, it makes zero.

With z the factors after AdamW's step, metric d = sqrt(v) + eps (v its bias-corrected second moment) and step size
eta = lr * lambda, a proximal step minimises (1/2) sum d (x - z)^2 + eta * penalty(x): the optimizer's own metric, for
in any other the two would balance elsewhere than where the penalised loss is least (Yun et al. 2021, ProxGen).

- `of=factors`: the penalty is |A|_1 + |B|_1, and its proximal map the soft threshold eta / d of every element.
- `of=delta`: the proximal map of |scaling B A|_1 has no closed form. Row i of B makes row i of the delta and nothing
  else, column j of A column j, so each is shrunk along its own direction, where the penalty is linear: row b by
  max(0, 1 - eta p / sum d b^2) with p the L1 norm of the delta's row. A row or column that reaches 0 is a row or
  column of exact zeros in the delta. Values that are small on their own stay what they are.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from paft.config import L1Of
from paft.delta.statistics import LowRank
from paft.losses import soft_threshold
from paft.model.policy import whole

BLOCK_ROWS = 512
"""Rows of a delta that exist at once."""


@torch.no_grad()
def proximal_step(factors: list[LowRank], optimizer: Optimizer, *, of: L1Of, weight: float) -> Tensor:
    """Shrink factors in place, after a step of AdamW; returns the penalty before, weight included: a float32 scalar.

    `factors` are the optimizer's own parameters A [r, in] and B [out, r], and the scaling. Those in shards are
    gathered, a layer at a time, and every rank must call this. A factor without a gradient has not been stepped and
    is left alone.
    """
    group = optimizer.param_groups[0]
    total = torch.zeros(())
    for A_stored, B_stored, scaling in factors:
        if A_stored.grad is None or B_stored.grad is None:
            continue
        metrics = [_metric(optimizer.state[p], group) for p in (A_stored, B_stored)]
        A, B = whole(A_stored), whole(B_stored)
        A, B, penalty = shrink(A, B, scaling, *metrics, step=group["lr"] * weight, of=of)
        total = total + weight * penalty.cpu()
        for stored, value in ((A_stored, A), (B_stored, B)):
            stored.copy_(_like(stored, value))
    return total


def shrink(
    A: Tensor, B: Tensor, scaling: float, metric_A: Tensor, metric_B: Tensor, *, step: float, of: L1Of
) -> tuple[Tensor, Tensor, Tensor]:
    """(A [r, in], B [out, r], the penalty before lambda) after a proximal step of size `step`; see the module."""
    if of is L1Of.factors:
        penalty = A.abs().sum() + B.abs().sum()
        return soft_threshold(A, step / metric_A), soft_threshold(B, step / metric_B), penalty
    rows, columns = _sums(A, B, scaling)
    A_kept = _kept(step * columns, (metric_A * A * A).sum(0))
    B_kept = _kept(step * rows, (metric_B * B * B).sum(1))
    return A * A_kept, B * B_kept[:, None], rows.sum()


def _kept(pull: Tensor, energy: Tensor) -> Tensor:
    """The factor on each row; 1 where nothing pulls."""
    return torch.where(pull > 0, (1 - pull / energy).clamp(min=0), 1.0)


def _sums(A: Tensor, B: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """L1 norms of the delta's rows [out] and columns [in]."""
    rows, columns = B.new_empty(len(B)), A.new_zeros(A.shape[1])
    for start in range(0, len(B), BLOCK_ROWS):
        block = (B[start : start + BLOCK_ROWS] @ A).abs_()
        rows[start : start + BLOCK_ROWS] = block.sum(1)
        columns += block.sum(0)
    return rows.mul_(abs(scaling)), columns.mul_(abs(scaling))


def _metric(state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
    """sqrt(v) + eps of AdamW's last step: what it divided by."""
    corrected = 1 - group["betas"][1] ** float(state["step"])
    return (whole(state["exp_avg_sq"]) / corrected).sqrt_().add_(group["eps"])


def _like(stored: Tensor, value: Tensor) -> Tensor:
    if not isinstance(stored, DTensor):
        return value
    return distribute_tensor(value, stored.device_mesh, stored.placements, src_data_rank=None)
