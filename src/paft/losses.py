"""The objectives: SFT, DPO, ORPO and the L1 penalty, as pure functions in float32.

Shapes: B rows, T tokens, H hidden, V vocabulary. Labels are token ids, -100 where a token is not a target. All
log-probabilities are natural logarithms.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from paft.chat.tokens import IGNORE
from paft.logps import Head, label_logps
from paft.logps import sequence_logps as sequence_logps


def mean_nll(logps: Tensor, num_tokens: int) -> Tensor:
    """Negative log-likelihood per label, of log-probabilities that are 0 where there is no label: float32 scalar.

    With the count of the global batch, the losses of its micro-batches add up to the loss of the whole.
    """
    return -logps.sum() / num_tokens


def sft_loss(
    outputs: Tensor, labels_BT: Tensor, head: Head | Tensor | None = None, *, num_tokens: int | None = None
) -> Tensor:
    """Mean negative log-likelihood per label: float32 scalar.

    `num_tokens` divides in place of this batch's own number of labels; see `mean_nll`.
    """
    if num_tokens is None:
        num_tokens = int((labels_BT[:, 1:] != IGNORE).sum())
    return mean_nll(label_logps(outputs, labels_BT, head), max(num_tokens, 1))


def dpo_loss(
    chosen_logps_B: Tensor,
    rejected_logps_B: Tensor,
    reference_chosen_logps_B: Tensor,
    reference_rejected_logps_B: Tensor,
    *,
    beta: float,
    loss: str = "sigmoid",
    label_smoothing: float = 0.0,
) -> Tensor:
    """DPO loss of each pair: float32 [B].

    With h the policy's log-ratio of chosen to rejected minus the reference's: `sigmoid` is equation 7 of
    Rafailov et al. 2023, with `label_smoothing` eps its conservative form
    -(1-eps) log s(beta h) - eps log s(-beta h); `hinge` is max(0, 1 - beta h) (Zhao et al. 2023); `ipo` is
    (h - 1/(2 beta))^2 (Azar et al. 2023), for which the log-probabilities are per-token means.
    """
    h_B = (chosen_logps_B - rejected_logps_B) - (reference_chosen_logps_B - reference_rejected_logps_B)
    h_B = h_B.float()
    match loss:
        case "sigmoid":
            return -(1 - label_smoothing) * F.logsigmoid(beta * h_B) - label_smoothing * F.logsigmoid(
                -beta * h_B
            )
        case "hinge":
            return torch.relu(1 - beta * h_B)
        case "ipo":
            return (h_B - 1 / (2 * beta)) ** 2
    raise ValueError(f"loss must be sigmoid, hinge or ipo, got {loss!r}")


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


class _DeltaL1(torch.autograd.Function):
    """|scaling * B A|_1 with its gradients, formed a block of rows at a time.

    The gradient of |D| is sign(D), so both factors' gradients come out of the forward pass:
    dB = scaling sign(D) A^T and dA = scaling B^T sign(D); and the sum itself is B . sign(B A) A^T, so that the
    products are read once. No delta outlives its block.
    """

    @staticmethod
    def forward(ctx: Any, A: Tensor, B: Tensor, scaling: float, rows: int) -> Tensor:
        grad_A, grad_B = torch.zeros_like(A), torch.empty_like(B)
        buffer = A.new_empty(
            min(rows, len(B)), A.shape[1]
        )  # one for all blocks: fresh memory costs as much again
        for start in range(0, len(B), rows):
            block = B[start : start + rows]
            sign = torch.mm(block, A, out=buffer[: len(block)]).sign_()
            torch.mm(sign, A.T, out=grad_B[start : start + rows])
            grad_A.addmm_(block.T, sign)
        total = (grad_B * B).sum() * abs(scaling)
        ctx.save_for_backward(grad_A.mul_(abs(scaling)), grad_B.mul_(abs(scaling)))
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_A, grad_B = ctx.saved_tensors
        return grad * grad_A, grad * grad_B, None, None


def l1_penalty(
    factors: Sequence[tuple[Tensor, Tensor, float]], *, of: str = "delta", block_rows: int = 512
) -> Tensor:
    """Sum of absolute values over all layers: float32 scalar (equation 1 of the paper, before lambda).

    `factors` are (A [r, in], B [out, r], scaling) per layer. `of="delta"` sums |scaling * B A| and never holds
    more than `block_rows` rows of one delta; `of="factors"` sums |A| + |B|.
    """
    if of == "factors":
        return torch.stack([A.abs().sum() + B.abs().sum() for A, B, _ in factors]).sum()
    if of != "delta":
        raise ValueError(f"of must be delta or factors, got {of!r}")
    return torch.stack([_DeltaL1.apply(A, B, scaling, block_rows) for A, B, scaling in factors]).sum()


def soft_threshold(values: Tensor, threshold: Tensor | float) -> Tensor:
    """Each value moved towards 0 by `threshold`, and 0 where that is farther than it is: the proximal map of
    threshold * |.|_1 (Donoho 1995). Shapes broadcast."""
    return values.sign() * (values.abs() - threshold).clamp(min=0)
