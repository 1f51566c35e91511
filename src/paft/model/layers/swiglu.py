"""The gated MLP's product as one autograd node that keeps the two factors only: an eighth of a layer's memory."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from paft.model.architecture import FAMILIES
from paft.model.layers.swapped import swap_forward

SAME_FORMULA = [family.mlp for family in FAMILIES]


class _SwiGLU(torch.autograd.Function):
    """silu(gate) * up; silu is computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        grad_up = F.silu(gate).mul_(grad)
        return torch.ops.aten.silu_backward(grad * up, gate), grad_up


def _forward(self: Any, x: Tensor) -> Tensor:
    return cast(Tensor, self.down_proj(_SwiGLU.apply(self.gate_proj(x), self.up_proj(x))))


def fuse_mlps(model: nn.Module) -> None:
    """Let every MLP of a known formula compute its product in one node; other layers stay as they are."""
    for module in model.modules():
        if type(module).__name__ in SAME_FORMULA and isinstance(module.act_fn, SiLUActivation):
            swap_forward(module, _forward)
