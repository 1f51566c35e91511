"""One LoRA layer as one autograd node, in the base's own type.

peft computes x A^T B^T in float32 beside a bfloat16 base: every input is cast up, and the skinny products run
at a quarter of the speed. Here the factors are cast down once (as under autocast), the update is added into
the base product's output, and the backward pass is the five products it needs.
"""

from typing import Any, cast

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn

from paft.model.layers.dropout import RowDropout


class _LoraProduct(torch.autograd.Function):
    """y = x W^T + bias + scaling (x * keep) A^T B^T for a frozen W; A and B get gradients in their own type.

    W None: its product with x is `bias`, [N, O], whose gradient is y's. `keep` is 0 or 1 at every input.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W: Tensor | None,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        scaling: float,
        keep: Tensor | None = None,
    ) -> Tensor:
        x_NI = x.reshape(-1, x.shape[-1])
        A_RI, B_OR = A.to(x.dtype), (B * scaling).to(x.dtype)
        down_NR = _kept(x_NI, keep) @ A_RI.T
        if W is None:
            assert bias is not None
            y_NO = torch.addmm(bias, down_NR, B_OR.T)
        else:
            y_NO = x_NI @ W.T if bias is None else torch.addmm(bias, x_NI, W.T)
            y_NO.addmm_(down_NR, B_OR.T)
        ctx.save_for_backward(x_NI, W, A_RI, B_OR, down_NR, keep)
        ctx.scaling, ctx.type, ctx.shape = scaling, A.dtype, x.shape
        return y_NO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, W, A_RI, B_OR, down_NR, keep = ctx.saved_tensors
        grad_NO = grad.reshape(-1, grad.shape[-1])
        up_NR = grad_NO @ B_OR
        grad_A = (up_NR.T @ _kept(x_NI, keep)).to(ctx.type)
        grad_B = (grad_NO.T @ down_NR).to(ctx.type) * ctx.scaling
        grad_x = None
        if ctx.needs_input_grad[0]:  # else the first layer, which reads frozen embeddings
            if W is None or keep is not None:
                grad_x = _kept(up_NR @ A_RI, keep)
                grad_x = grad_x if W is None else grad_x.addmm_(grad_NO, W)
            else:
                grad_x = (grad_NO @ W).addmm_(up_NR, A_RI)
            grad_x = grad_x.view(ctx.shape)
        return grad_x, None, grad_NO if W is None else None, grad_A, grad_B, None, None


def _kept(x_NI: Tensor, keep: Tensor | None) -> Tensor:
    return x_NI if keep is None else x_NI * keep


class LoraLinear(Linear):
    """peft's LoRA layer, file format and names included, with `_LoraProduct` for the cases training needs.

    Its base is a linear layer, or one in four bits, which multiplies its input itself. Anything else (adapter off,
    merged, several adapters, a dropout that is not `RowDropout`, an input of another type) is peft's own forward.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base, active = cast(nn.Linear, self.get_base_layer()), self.active_adapters
        plain = not (self.disable_adapters or self.merged or args or kwargs) and len(active) == 1
        if not plain or x.dtype != _multiplied_in(base):
            return super().forward(x, *args, **kwargs)
        dropout = self.lora_dropout[active[0]]
        scaling, keep = self.scaling[active[0]], None
        if isinstance(dropout, RowDropout):
            keep = dropout.keep(x)
            scaling = scaling if keep is None else scaling / (1 - dropout.p)
        elif dropout.training and not isinstance(dropout, nn.Identity):
            return super().forward(x, *args, **kwargs)
        W: Tensor | None = base.weight
        bias: Tensor | None = base.bias
        if not base.weight.is_floating_point():
            W, bias = None, base(x).flatten(0, -2)
        A, B = self.lora_A[active[0]].weight, self.lora_B[active[0]].weight
        return cast(Tensor, _LoraProduct.apply(x, W, bias, A, B, scaling, keep))


def _multiplied_in(base: nn.Linear) -> torch.dtype:
    """The type of a layer's products; one in four bits names it."""
    return base.weight.dtype if base.weight.is_floating_point() else cast(torch.dtype, base.compute_dtype)
