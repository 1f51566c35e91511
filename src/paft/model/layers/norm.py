"""RMSNorm as one autograd node: three passes backward in place of ten."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paft.device import forms_on
from paft.model.architecture import FAMILIES
from paft.model.layers.swapped import swap_forward

SAME_FORMULA = [family.norm for family in FAMILIES]


class _RMSNorm(torch.autograd.Function):
    """weight * x / sqrt(mean(x^2) + eps), in float32 up to the product with the weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = torch.rsqrt(norm.square_().div_(x.shape[-1]).add_(eps))
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).to(x.dtype) * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        pull, unit = (grad * weight).float(), x.float() * scale
        grad_weight = None
        if ctx.needs_input_grad[1]:  # of full fine-tuning
            grad_weight = (grad * unit).flatten(0, -2).sum(0).to(weight.dtype)
        along = torch.linalg.vecdot(pull, unit).unsqueeze(-1) / x.shape[-1]
        return pull.addcmul_(unit, along, value=-1).mul_(scale).to(grad.dtype), grad_weight, None


def _forward(self: Any, hidden_states: Tensor) -> Tensor:
    if not forms_on(hidden_states.device.type).own_norm:
        return F.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)
    return cast(Tensor, _RMSNorm.apply(hidden_states, self.weight, self.variance_epsilon))


def fuse_norms(model: nn.Module) -> None:
    """Let every RMSNorm of a known formula compute itself in one node; other layers stay as they are.

    PyTorch's own function, where the device takes it, rounds once, after the weight: nearer to the exact value.
    """
    for module in model.modules():
        if type(module).__name__ in SAME_FORMULA:
            swap_forward(module, _forward)
