"""The L1 penalty of equation 1, and its proximal map."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from paft.device import forms_on


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


Layer = tuple[Tensor, Tensor, float] | Tensor
"""(A [r, in], B [out, r], scaling), whose delta is scaling * B A; or the delta itself, of any shape."""


def l1_penalty(layers: Sequence[Layer], *, of: str = "delta", block_rows: int | None = None) -> Tensor:
    """Sum of absolute values over all layers: float32 scalar (equation 1 of the paper, before lambda).

    `of="delta"` sums |scaling * B A| and never holds more than `block_rows` rows of one delta (None: the device's
    `delta_rows`); `of="factors"` sums |A| + |B|. Of a delta itself both are the sum of its elements' absolute values.
    """
    if of not in ("delta", "factors"):
        raise ValueError(f"of must be delta or factors, got {of!r}")
    return torch.stack([_l1(layer, of, block_rows) for layer in layers]).sum()


def _l1(layer: Layer, of: str, block_rows: int | None) -> Tensor:
    if isinstance(layer, Tensor):
        return layer.abs().sum()
    A, B, scaling = layer
    if of == "factors":
        return A.abs().sum() + B.abs().sum()
    total: Tensor = _DeltaL1.apply(A, B, scaling, block_rows or forms_on(A.device.type).delta_rows)
    return total


def soft_threshold(values: Tensor, threshold: Tensor | float) -> Tensor:
    """Each value moved towards 0 by `threshold`, and 0 where that is farther than it is: the proximal map of
    threshold * |.|_1 (Donoho 1995). Shapes broadcast."""
    return values.sign() * (values.abs() - threshold).clamp(min=0)
