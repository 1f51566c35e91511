"""Log-probabilities of labels, in float32, from hidden states and an output head a block of tokens at a time.

Shapes: B rows, T tokens, H hidden, V vocabulary, N selected tokens. Labels are token ids, -100 where a token
is not a target. All log-probabilities are natural logarithms.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from paft.chat.tokens import IGNORE
from paft.device import forms_on


class Head(NamedTuple):
    """An output head: logits = cap tanh(scale (h W^T + bias) / cap), without a cap scale (h W^T + bias).

    The bias is phi's and CodeGen's, the scale Cohere's, Granite's and Falcon-H1's, the cap Gemma 2's.
    """

    weight: Tensor
    """[V, H]."""
    bias: Tensor | None = None
    """[V]."""
    scale: float = 1.0
    cap: float | None = None

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """[N, V] in the type of the hidden states."""
        W = self.weight
        logits_NV = hidden_NH @ W.T if self.bias is None else torch.addmm(self.bias, hidden_NH, W.T)
        if self.scale != 1:
            logits_NV = logits_NV.mul_(self.scale)
        return logits_NV if self.cap is None else logits_NV.div_(self.cap).tanh_().mul_(self.cap)

    def pull(self, residual_NV: Tensor, damping_NV: Tensor | None) -> Tensor:
        """[N, H]: what a gradient to the logits is to the hidden states; `damping_NV` is that of the cap."""
        if damping_NV is not None:
            residual_NV = residual_NV * damping_NV
        pull_NH = residual_NV @ self.weight
        return pull_NH if self.scale == 1 else pull_NH * self.scale

    def damping(self, logits_NV: Tensor) -> Tensor | None:
        """[N, V]: the slope of the cap at these logits, 1 - (logits / cap)^2; None where there is none."""
        return None if self.cap is None else 1 - (logits_NV / self.cap).square_()


class _HeadLogps(torch.autograd.Function):
    """Log-probability of each target under an output head, without ever holding all logits.

    The gradient of a token's log-probability to its hidden state, e_target W - softmax W, does not depend on
    what comes later; only its scalar factor does. So it is formed block by block in the forward pass and
    multiplied by that factor in the backward pass: as much arithmetic as the plain way, N x H memory. A head that is
    trained makes its logits once more in the backward pass, where its own gradient is added up in float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        scale: float,
        cap: float | None,
        targets_N: Tensor,
        block_N: int,
    ) -> Tensor:
        head = Head(weight_VH, bias_V, scale, cap)
        needs_grad = ctx.needs_input_grad[0]
        logps_N = torch.empty(len(targets_N), dtype=torch.float32, device=hidden_NH.device)
        slope_NH = torch.empty_like(hidden_NH) if needs_grad else None
        for start in range(0, len(targets_N), block_N):
            block = slice(start, start + block_N)
            logits_NV = head.logits(hidden_NH[block])
            damping_NV = head.damping(logits_NV) if needs_grad else None
            logps_N[block], totals_N = _softmax_residual_(logits_NV, targets_N[block])
            if slope_NH is not None:
                slope_NH[block] = head.pull(logits_NV, damping_NV) / totals_N[:, None]
        if slope_NH is not None:
            trained = any(ctx.needs_input_grad[1:3])
            ctx.save_for_backward(slope_NH, *([hidden_NH, targets_N, weight_VH, bias_V] if trained else []))
            ctx.form, ctx.block_N = (scale, cap), block_N
        return logps_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        slope_NH, *rest = ctx.saved_tensors
        grad_NH = (grad_N[:, None] * slope_NH.float()).to(slope_NH.dtype)
        if not rest:
            return grad_NH, *[None] * 6
        hidden_NH, targets_N, weight_VH, bias_V = rest
        head = Head(weight_VH, bias_V, *ctx.form)
        of_head = _head_gradients(head, hidden_NH, targets_N, grad_N, ctx.block_N)
        return grad_NH, *of_head, None, None, None, None


def _head_gradients(
    head: Head, hidden_NH: Tensor, targets_N: Tensor, grad_N: Tensor, block_N: int
) -> tuple[Tensor, Tensor | None]:
    """Of the head's weight [V, H] and bias [V], for the gradients of the targets' log-probabilities."""
    W, bias = head.weight, head.bias
    grad_VH = torch.zeros_like(W, dtype=torch.float32)
    grad_V = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
    for start in range(0, len(targets_N), block_N):
        block = slice(start, start + block_N)
        logits_NV = head.logits(hidden_NH[block])
        damping_NV = head.damping(logits_NV)
        _, totals_N = _softmax_residual_(logits_NV, targets_N[block])
        pull_NV = logits_NV.mul_((head.scale * grad_N[block] / totals_N)[:, None])
        pull_NV = pull_NV if damping_NV is None else pull_NV.mul_(damping_NV)
        grad_VH += pull_NV.T @ hidden_NH[block]
        if grad_V is not None:
            grad_V += pull_NV.sum(0)
    return grad_VH.to(W.dtype), None if grad_V is None or bias is None else grad_V.to(bias.dtype)


def _softmax_residual_(logits_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """(log-probability of each target, sum z of each row's exponentials); float32 [N] both.

    Leaves z (e_target - softmax) in place of the logits: the difference is taken in float32, before it is
    rounded to their type, so that a nearly certain target keeps its small gradient.
    """
    logps_N = torch.empty(len(targets_N), dtype=torch.float32, device=logits_NV.device)
    totals_N = torch.empty_like(logps_N)
    size = forms_on(logits_NV.device.type).softmax_rows
    for start in range(0, len(targets_N), size):
        rows = slice(start, start + size)
        exponents, picked = logits_NV[rows].float(), targets_N[rows, None]
        exponents.sub_(exponents.amax(-1, keepdim=True))
        logps_N[rows] = exponents.gather(1, picked).squeeze(1)
        totals_N[rows] = exponents.exp_().sum(-1)
        logits_NV[rows] = exponents.neg_().scatter_add_(1, picked, totals_N[rows, None])
    return logps_N - totals_N.log(), totals_N


def label_logps(
    outputs: Tensor, labels_BT: Tensor, head: Head | Tensor | None = None, *, block_N: int | None = None
) -> Tensor:
    """Log-probability of every label given what precedes it: float32 [B, T], 0 where there is no label.

    `outputs` are logits [B, T, V]; or, with the frozen output head (or its weight [V, H], where that is all of it),
    the hidden states [B, T, H] it would be applied to, and then logits are formed only where there is a label,
    `block_N` tokens at a time; None: as many as the device's `head_block`.
    """
    wanted_BT = labels_BT[:, 1:] != IGNORE
    targets_N = labels_BT[:, 1:][wanted_BT]
    selected = outputs[:, :-1][wanted_BT]
    if head is None:
        logps_N = F.log_softmax(selected.float(), dim=-1).gather(1, targets_N[:, None]).squeeze(1)
    else:
        whole = head if isinstance(head, Head) else Head(head)
        block_N = block_N or forms_on(selected.device.type).head_block
        logps_N = _HeadLogps.apply(selected, *whole, targets_N, block_N)
    logps_BT = torch.zeros(labels_BT.shape, dtype=torch.float32, device=outputs.device)
    logps_BT[:, 1:] = logps_BT[:, 1:].masked_scatter(wanted_BT, logps_N)
    return logps_BT


def sequence_logps(
    outputs: Tensor, labels_BT: Tensor, head: Head | Tensor | None = None, *, mean: bool = False
) -> Tensor:
    """Log-probability of each row's labels: float32 [B], the sum over labels or, with `mean`, the average.

    Arguments as for `label_logps`. A row without labels gives 0.
    """
    sums_B = label_logps(outputs, labels_BT, head).sum(1)
    if not mean:
        return sums_B
    return sums_B / (labels_BT[:, 1:] != IGNORE).sum(1).clamp(min=1)
