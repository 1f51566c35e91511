"""Losses of a pair of answers by their log-probabilities: DPO and what differs from it in one formula.

In the formulas c and r are the log-ratios of policy to reference of the chosen and the rejected answer, h = c - r, s
the logistic function, eps the label smoothing.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST_EXPONENT = 80.0
"""Of float32, with room for a factor; TRL's."""


def dpo_loss(
    chosen_logps_B: Tensor,
    rejected_logps_B: Tensor,
    reference_chosen_logps_B: Tensor,
    reference_rejected_logps_B: Tensor,
    *,
    beta: float,
    loss: str = "sigmoid",
    label_smoothing: float = 0.0,
    discopop_tau: float = 0.05,
    dpop_lambda: float = 50.0,
    f_divergence: str = "reverse_kl",
    f_alpha: float = 0.5,
    tokens: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """DPO loss of each pair: float32 [B]. `loss` is one of `dpo_losses`' names.

    `f_divergence` puts f'(ratio) in the place of c and r; see `divergence_score`. Where log-probabilities are means per
    token, `tokens` are the numbers of tokens [B] of both answers, by which such a score is divided too.
    """
    ratios = (chosen_logps_B - reference_chosen_logps_B, rejected_logps_B - reference_rejected_logps_B)
    if (
        f_divergence == "reverse_kl"
    ):  # h as DPO's equation 7 has it: each policy's own difference of the answers
        c_B, r_B = (ratio.float() for ratio in ratios)
        h_B = (chosen_logps_B - rejected_logps_B) - (reference_chosen_logps_B - reference_rejected_logps_B)
        h_B = h_B.float()
    else:
        n = tokens or (torch.ones_like(ratios[0]), torch.ones_like(ratios[1]))
        c_B, r_B = (
            divergence_score(x.float() * k, f_divergence, f_alpha) / k for x, k in zip(ratios, n, strict=True)
        )
        h_B = c_B - r_B
    return dpo_losses(
        c_B, r_B, h_B, beta=beta, loss=loss, eps=label_smoothing, tau=discopop_tau, dpop_lambda=dpop_lambda
    )


def dpo_losses(
    c: Tensor, r: Tensor, h: Tensor, *, beta: float, loss: str, eps: float, tau: float, dpop_lambda: float
) -> Tensor:
    """The formula of each `loss`, of float32 [B] each; sources stand at `paft.objectives.dpo.DPOLoss`."""
    log_s, s = F.logsigmoid, torch.sigmoid
    match loss:
        case "sigmoid" | "sigmoid_norm":
            return -(1 - eps) * log_s(beta * h) - eps * log_s(-beta * h)
        case "hinge":
            return torch.relu(1 - beta * h)
        case "ipo":
            return (h - 1 / (2 * beta)) ** 2
        case "robust":
            return (-(1 - eps) * log_s(beta * h) + eps * log_s(-beta * h)) / (1 - 2 * eps)
        case "exo_pair":  # KL of (s, 1 - s) from (1 - eps, eps)
            chosen = s(beta * h) * (log_s(beta * h) - math.log1p(-eps))
            return chosen + s(-beta * h) * (log_s(-beta * h) - math.log(eps))
        case "nca_pair":
            return -log_s(beta * c) - 0.5 * log_s(-beta * c) - 0.5 * log_s(-beta * r)
        case "bco_pair":
            return -log_s(beta * c) - log_s(-beta * r)
        case "sppo_hard":
            return (c - 0.5 / beta) ** 2 + (r + 0.5 / beta) ** 2
        case "apo_zero":
            return 1 - s(beta * c) + s(beta * r)
        case "apo_down":
            return s(beta * c) + 1 - s(beta * h)
        case "discopop":  # exp(-x) s(x / tau) in one exponent: apart they are infinity times zero
            mixed = torch.exp(log_s(beta * h / tau) - beta * h)
            return -log_s(beta * h) * s(-beta * h / tau) + mixed
        case "dpop":
            return -log_s(beta * (h - dpop_lambda * torch.relu(-c)))
    raise ValueError(
        "loss must be sigmoid, sigmoid_norm, hinge, ipo, robust, exo_pair, nca_pair, bco_pair, sppo_hard, apo_zero, "
        f"apo_down, discopop or dpop, got {loss!r}"
    )


def divergence_score(log_ratio_B: Tensor, f_divergence: str, alpha: float) -> Tensor:
    """f'(t) of the ratio t of policy to reference, given log t: float32 [B] (Wang et al. 2023, arXiv:2309.16240).

    `reverse_kl`: log t (DPO); `forward_kl`: 1 - 1/t; `js_divergence`: log(2t / (t + 1)); `alpha_divergence`:
    (t^(alpha-1) - 1) / (alpha - 1), which nears log t as alpha nears 1.
    """
    match f_divergence:
        case "reverse_kl":
            return log_ratio_B
        case "forward_kl":
            return 1 - torch.exp(-log_ratio_B)
        case "js_divergence":
            return math.log(2) + F.logsigmoid(log_ratio_B)
        case "alpha_divergence":
            return torch.exp(((alpha - 1) * log_ratio_B).clamp(max=LARGEST_EXPONENT)).sub(1) / (alpha - 1)
    raise ValueError(
        "f_divergence must be reverse_kl, forward_kl, js_divergence or alpha_divergence, "
        f"got {f_divergence!r}"
    )


def contrastive_loss(
    chosen_logps_B: Tensor,
    rejected_logps_B: Tensor,
    *,
    beta: float,
    gamma: float = 0.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """A loss without a reference of each pair: float32 [B], with x = beta (log p(chosen) - log p(rejected)) - gamma the
    smoothed -(1-eps) log s(x) - eps log s(-x).

    Of sums over tokens it is CPO's (Xu et al. 2024, equation 3); of means per token, with the margin gamma, SimPO's
    (Meng et al. 2024, equation 6).
    """
    x_B = beta * (chosen_logps_B.float() - rejected_logps_B.float()) - gamma
    return -(1 - label_smoothing) * F.logsigmoid(x_B) - label_smoothing * F.logsigmoid(-x_B)
