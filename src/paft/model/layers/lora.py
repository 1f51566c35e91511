"""One LoRA layer as one autograd node, in the base's own type.

peft computes x A^T B^T in float32 beside a bfloat16 base: every input is cast up, and the skinny products run
at a quarter of the speed. Here the factors are cast down once (as under autocast), the update is added into
the base product's output, and the backward pass is the five products it needs.
"""

from typing import Any, cast

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn


class _LoraProduct(torch.autograd.Function):
    """y = x W^T + bias + scaling x A^T B^T for a frozen W; the gradients of A and B come back in their own type."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scaling: float
    ) -> Tensor:
        x_NI = x.reshape(-1, x.shape[-1])
        A_RI, B_OR = A.to(W.dtype), (B * scaling).to(W.dtype)
        down_NR = x_NI @ A_RI.T
        y_NO = x_NI @ W.T if bias is None else torch.addmm(bias, x_NI, W.T)
        y_NO.addmm_(down_NR, B_OR.T)
        ctx.save_for_backward(x_NI, W, A_RI, B_OR, down_NR)
        ctx.scaling, ctx.type, ctx.shape = scaling, A.dtype, x.shape
        return y_NO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        x_NI, W, A_RI, B_OR, down_NR = ctx.saved_tensors
        grad_NO = grad.reshape(-1, grad.shape[-1])
        up_NR = grad_NO @ B_OR
        grad_A = (up_NR.T @ x_NI).to(ctx.type)
        grad_B = (grad_NO.T @ down_NR).to(ctx.type) * ctx.scaling
        if not ctx.needs_input_grad[0]:  # the first layer reads frozen embeddings
            return None, None, None, grad_A, grad_B, None
        grad_x = (grad_NO @ W).addmm_(up_NR, A_RI)
        return grad_x.view(ctx.shape), None, None, grad_A, grad_B, None


class LoraLinear(Linear):
    """peft's LoRA layer, file format and names included, with `_LoraProduct` for the case training needs.

    Anything else (adapter off, merged, several adapters, dropout at work, an input of another type) is peft's own
    forward.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base = cast(nn.Linear, self.get_base_layer())
        active = self.active_adapters
        plain = not (self.disable_adapters or self.merged or args or kwargs) and len(active) == 1
        if not plain or x.dtype != base.weight.dtype or _drops(self.lora_dropout[active[0]]):
            return super().forward(x, *args, **kwargs)
        A, B = self.lora_A[active[0]].weight, self.lora_B[active[0]].weight
        return cast(Tensor, _LoraProduct.apply(x, base.weight, base.bias, A, B, self.scaling[active[0]]))


def _drops(dropout: nn.Module) -> bool:
    return dropout.training and not isinstance(dropout, nn.Identity)
