"""The L1 penalty as a proximal step after each optimizer step: what it does not move past zero, it makes zero.

With z the parameters after AdamW's step, metric d = sqrt(v) + eps (v its bias-corrected second moment) and step size
eta = lr * lambda, a proximal step minimises (1/2) sum d (x - z)^2 + eta * penalty(x): the optimizer's own metric, for
in any other the two would balance elsewhere than where the penalised loss is least (Yun et al. 2021, ProxGen).

- `of=factors`: the penalty is |A|_1 + |B|_1, and its proximal map the soft threshold eta / d of every element.
- `of=delta`: the proximal map of |scaling B A|_1 has no closed form. Row i of B makes row i of the delta and nothing
  else, column j of A column j, so each is shrunk along its own direction, where the penalty is linear: row b by
  max(0, 1 - eta p / sum d b^2) with p the L1 norm of the delta's row. A row or column that reaches 0 is a row or
  column of exact zeros in the delta. Values that are small on their own stay what they are.
- In full fine-tuning the delta itself is the parameter: the soft threshold eta / d of every element.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from paft.config import L1Of
from paft.delta.statistics import LowRank
from paft.device import forms_on
from paft.losses import soft_threshold
from paft.model.shards import own_rows, whole


@torch.no_grad()
def proximal_step(
    deltas: Sequence[LowRank | Tensor], optimizer: Optimizer, *, of: L1Of, weight: float
) -> Tensor:
    """Shrink deltas in place, after a step of AdamW; returns the penalty before, weight included: a float32 scalar.

    `deltas` are the optimizer's own parameters: A [r, in] and B [out, r] with their scaling, or deltas themselves.
    Every rank must call this for those in shards; factors are gathered, a layer at a time. What has no gradient has not
    been stepped and is left alone.
    """
    group = optimizer.param_groups[0]
    total = torch.zeros(())
    for delta in deltas:
        parameters = [delta] if isinstance(delta, Tensor) else delta[:2]
        if any(p.grad is None for p in parameters):
            continue
        states = [optimizer.state[p] for p in parameters]
        if isinstance(delta, Tensor):
            penalty = _shrink_elements(delta, states[0], group, weight)
        else:
            penalty = _shrink_factors(delta, states, group, weight, of)
        total = total + weight * penalty
    return total


def _shrink_elements(
    delta: Tensor, state: Mapping[str, Any], group: Mapping[str, Any], weight: float
) -> Tensor:
    """Every element by itself, so that a shard needs no other; returns the L1 norm before, of all shards."""
    penalty = whole(delta.detach().abs().sum())
    own, metric = own_rows(delta), _metric(own_rows(state["exp_avg_sq"]), state, group)
    own.copy_(soft_threshold(own, group["lr"] * weight / metric))
    return penalty


def _shrink_factors(
    delta: LowRank, states: Sequence[Mapping[str, Any]], group: Mapping[str, Any], weight: float, of: L1Of
) -> Tensor:
    A_stored, B_stored, scaling = delta
    metrics = [_metric(whole(state["exp_avg_sq"]), state, group) for state in states]
    step = group["lr"] * weight
    A, B, penalty = shrink(whole(A_stored), whole(B_stored), scaling, *metrics, step=step, of=of)
    A_stored.copy_(_like(A_stored, A))
    B_stored.copy_(_like(B_stored, B))
    return penalty


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
    size = forms_on(B.device.type).delta_rows
    for start in range(0, len(B), size):
        block = (B[start : start + size] @ A).abs_()
        rows[start : start + size] = block.sum(1)
        columns += block.sum(0)
    return rows.mul_(abs(scaling)), columns.mul_(abs(scaling))


def _metric(second_moment: Tensor, state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
    """sqrt(v) + eps of AdamW's last step: what it divided by."""
    corrected = 1 - group["betas"][1] ** float(state["step"])
    return (second_moment / corrected).sqrt_().add_(group["eps"])


def _like(stored: Tensor, value: Tensor) -> Tensor:
    if not isinstance(stored, DTensor):
        return value
    return distribute_tensor(value, stored.device_mesh, stored.placements, src_data_rank=None)
