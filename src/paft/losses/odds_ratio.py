"""ORPO: the log odds ratio of two answers."""

import torch
import torch.nn.functional as F
from torch import Tensor


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0, in the form that keeps its digits on both sides of -log 2 (Maechler 2012).

    At 0 the value would be minus infinity: x is held below -1e-7, where float32 can still tell.
    """
    x = x.clamp(max=-1e-7)
    near_zero = x > -0.6931471805599453
    # each branch sees only arguments it is finite for: `where` alone would let NaN into the gradient
    close = torch.log(-torch.expm1(torch.where(near_zero, x, -1.0)))
    far = torch.log1p(-torch.exp(torch.where(near_zero, -1.0, x)))
    return torch.where(near_zero, close, far)


def odds_ratio_loss(chosen_logps_B: Tensor, rejected_logps_B: Tensor, *, beta: float) -> Tensor:
    """ORPO's odds-ratio term of each pair: float32 [B], -beta log s(log odds ratio) (Hong et al. 2024, equation 7).

    The log-probabilities are per-token means over the response. Finite at log-probability 0.
    """
    chosen, rejected = chosen_logps_B.float(), rejected_logps_B.float()
    log_odds_B = (chosen - rejected) - (log1mexp(chosen) - log1mexp(rejected))
    return -beta * F.logsigmoid(log_odds_B)


def orpo_loss(chosen_logps_B: Tensor, rejected_logps_B: Tensor, nll: Tensor, *, beta: float) -> Tensor:
    """ORPO loss of each pair: float32 [B], `nll` plus the odds-ratio term (Hong et al. 2024, equation 6).

    `nll` is the likelihood term, a scalar or [B].
    """
    return nll + odds_ratio_loss(chosen_logps_B, rejected_logps_B, beta=beta)
