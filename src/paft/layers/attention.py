"""Attention as matrix products with a backward pass of its own, for training on CPUs.

PyTorch's fused attention spends most of a short row's training step in its CPU backward pass; as plain
products the same arithmetic takes a third of the time. Scores are rounded to the model's type by the product
that makes them, as in transformers' eager attention, and the softmax works in float32 inside.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

AUTO = "paft_auto"
"""The name under which transformers knows `attention`."""
LONGEST = 1024
"""Positions beyond which the [T, T] weights kept for the backward pass outweigh everything else a layer keeps."""


class Packed(NamedTuple):
    """Texts of different lengths end to end in one row, each of which sees itself alone."""

    lengths: list[int]
    biases: list[Tensor]
    """[T, T] of each text, to be added to its scores."""


class _Attention(torch.autograd.Function):
    """softmax(scaling q k^T + bias) v, with one or more query heads to a key head.

    q [B, Hq, T, D], k and v [B, Hk, S, D], bias [B or 1, 1, T, S]. In the names below G is batch times key
    heads, and the query heads of one key head are laid end to end along T.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scaling: float) -> Tensor:
        k_GSD, v_GSD = k.flatten(0, 1), v.flatten(0, 1)
        q_GTD = (q * scaling).reshape(len(k_GSD), -1, q.shape[-1])
        weights_GTS = _weights(q_GTD, k_GSD, bias, q.shape[:3])
        ctx.save_for_backward(q_GTD, k_GSD, v_GSD, weights_GTS)
        ctx.scaling, ctx.shapes = scaling, (q.shape, k.shape)
        return torch.bmm(weights_GTS, v_GSD).view(q.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q_shape, k_shape = ctx.shapes
        grad_GTD = grad.reshape(ctx.saved_tensors[0].shape)
        grad_q, grad_k, grad_v = _gradients(grad_GTD, *ctx.saved_tensors)
        return grad_q.mul_(ctx.scaling).view(q_shape), grad_k.view(k_shape), grad_v.view(k_shape), None, None


class _PackedAttention(torch.autograd.Function):
    """`_Attention` of each text of a packed row: q [1, Hq, N, D], k and v [1, Hk, N, D]; no padding is computed."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, packed: Packed, scaling: float) -> Tensor:
        out, weights = torch.empty_like(q), []
        q = q * scaling
        for span, bias in zip(_spans(packed), packed.biases, strict=True):
            q_GTD, k_GSD, v_GSD = _grouped(q, k, span), k[0, :, span], v[0, :, span]
            weights.append(_weights(q_GTD, k_GSD, bias, (q.shape[1], len(bias))))
            out[0, :, span] = torch.bmm(weights[-1], v_GSD).view(q.shape[1], -1, q.shape[-1])
        ctx.save_for_backward(q, k, v, *weights)
        ctx.scaling, ctx.packed = scaling, packed
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, *weights = ctx.saved_tensors
        grads = tuple(torch.empty_like(t) for t in (q, k, v))
        for span, weights_GTS in zip(_spans(ctx.packed), weights, strict=True):
            parts = _gradients(
                _grouped(grad, k, span), _grouped(q, k, span), k[0, :, span], v[0, :, span], weights_GTS
            )
            for whole, part in zip(grads, parts, strict=True):
                whole[0, :, span] = part.view(whole.shape[1], -1, whole.shape[-1])
        return grads[0].mul_(ctx.scaling), grads[1], grads[2], None, None


def _spans(packed: Packed) -> list[slice]:
    ends = list(accumulate(packed.lengths))
    return [slice(end - length, end) for end, length in zip(ends, packed.lengths, strict=True)]


def _grouped(q: Tensor, k: Tensor, span: slice) -> Tensor:
    """[Hk, query heads of a key head x positions of the span, D]."""
    return q[0, :, span].reshape(k.shape[1], -1, q.shape[-1])


def _weights(q_GTD: Tensor, k_GSD: Tensor, bias: Tensor, per_head: Sequence[int]) -> Tensor:
    """Softmax of the scores, which have one row for each of the queries that `per_head` counts."""
    scores_GTS = torch.bmm(q_GTD, k_GSD.transpose(1, 2))
    return scores_GTS.view(*per_head, -1).add_(bias).softmax(-1).view_as(scores_GTS)


def _gradients(
    grad_GTD: Tensor, q_GTD: Tensor, k_GSD: Tensor, v_GSD: Tensor, weights_GTS: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the scaled q, of k and of v."""
    grad_v = torch.bmm(weights_GTS.transpose(1, 2), grad_GTD)
    grad_weights = torch.bmm(grad_GTD, v_GSD.transpose(1, 2))
    grad_scores = torch._softmax_backward_data(grad_weights, weights_GTS, -1, weights_GTS.dtype)
    return torch.bmm(grad_scores, k_GSD), torch.bmm(grad_scores.transpose(1, 2), q_GTD), grad_v


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed: Packed | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: `_Attention` for whole short rows on a CPU, `sdpa` for all else.

    Query [B, Hq, T, D], key and value [B, Hk, S, D]; a mask is added to the scores, and without one the rows
    are causal. With `packed`, one row of several texts that brings their masks. Returns [B, T, Hq, D] and no
    weights.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if packed is not None:
        return _PackedAttention.apply(query, key, value, packed, scaling).transpose(1, 2), None
    length = query.shape[2]
    masked_rows = attention_mask is not None and attention_mask.is_floating_point()
    causal_rows = attention_mask is None and length == key.shape[2] and getattr(module, "is_causal", True)
    if query.device.type != "cpu" or dropout or length > LONGEST or not (masked_rows or causal_rows):
        out: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return out
    bias = causal_bias(length, query.dtype) if attention_mask is None else attention_mask
    return _Attention.apply(query, key, value, bias, scaling).transpose(1, 2), None


def causal_bias(length: int, dtype: torch.dtype) -> Tensor:
    """[T, T]: 0 where a position may look, minus infinity at what comes after it."""
    return torch.full((length, length), -torch.inf, dtype=dtype).triu_(1)


def shared_prompt_bias(segments_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, 1, T, T]: 0 where a position may look: back at segment 0, the prompt, and at its own segment."""
    queries, keys = segments_BT[:, :, None], segments_BT[:, None, :]
    hidden_BTT = ((keys != 0) & (keys != queries)).logical_or_(
        torch.ones(*segments_BT.shape[1:] * 2, dtype=torch.bool, device=segments_BT.device).triu_(1)
    )
    return torch.zeros(hidden_BTT.shape, dtype=dtype, device=segments_BT.device).masked_fill_(
        hidden_BTT, -torch.inf
    )[:, None]


AttentionInterface.register(AUTO, attention)
AttentionMaskInterface.register(AUTO, sdpa_mask)
