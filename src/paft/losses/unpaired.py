"""The loss of single answers that are judged good or bad, by their log-probabilities."""

import torch
from torch import Tensor


def kto_loss(
    logps_B: Tensor,
    reference_logps_B: Tensor,
    desirable_B: Tensor,
    *,
    kl: Tensor | float,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """KTO loss of each answer: float32 [B] (Ethayarajh et al. 2024, equation 7, as TRL writes it).

    With r the log-ratio of policy to reference, weight (1 - s(beta (r - kl))) of a desirable answer and
    weight (1 - s(beta (kl - r))) of another one. `desirable_B` are booleans; `kl`, a scalar of at least 0 without a
    gradient, is the reference point. With `kl` 0 it is TRL's `apo_zero_unpaired`: APO-zero answer by answer
    (D'Oosterlinck et al. 2024, 2408.06266).
    """
    above_B = (logps_B - reference_logps_B).float() - kl
    weights_B = torch.where(desirable_B, desirable_weight, undesirable_weight)
    return weights_B * torch.sigmoid(-beta * torch.where(desirable_B, above_B, -above_B))


def reference_point(log_ratios: Tensor, num_rows: int) -> Tensor:
    """KTO's estimate of the policy's KL divergence from the reference: float32 scalar without a gradient.

    The mean of the log-ratios of `num_rows` prompts with answers of other prompts, 0 if that is negative; a whole
    global batch together (Ethayarajh et al. 2024, section 4.1). `log_ratios` may be sums of several.
    """
    return (log_ratios.detach().sum() / num_rows).clamp(min=0).float()
