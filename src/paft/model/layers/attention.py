"""Attention as matrix products with a backward pass of its own, for training on CPUs.

PyTorch's fused attention spends most of a short row's training step in its CPU backward pass; as plain
products the same arithmetic takes a third of the time. Scores are rounded to the model's type by the product
that makes them, as in transformers' eager attention, and the softmax works in float32 inside.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from paft.device import Packing, forms_on
from paft.model.layers.varlen import Varlen, varlen, varlen_attention
from paft.private import softmax_backward

AUTO = "paft_auto"
"""The name under which transformers knows `attention`."""
LONGEST = 1024
"""Positions beyond which the [T, T] weights kept for the backward pass outweigh everything else a layer keeps."""

UNDERSTOOD = {
    "is_causal", "sliding_window", "position_ids", "cache_position", "use_cache", "output_attentions",
    "output_hidden_states", "output_router_logits", "return_dict", "past_key_values", "logits_to_keep",
}  # fmt: skip
"""What a model may hand to `attention` beside its tensors without asking for another result: masks carry windows."""
ALIKE = 0.85
"""Texts are padded together where the shortest has at least this share of the longest's tokens."""


class Group(NamedTuple):
    """Consecutive texts of a packed row that attention pads to the longest of them; each sees itself alone.

    One batch of products is two to three times as fast as a product for each text.
    """

    tokens: int
    places: Tensor
    """int64 [G T]: which of the group's tokens stands at each place of the padded [G, T]; any one at padding."""
    real: Tensor
    """int64 [tokens]: the place of each token."""
    bias: Tensor
    """[T, T] or [G, 1, T, T], to be added to the scores; hides padding from every token."""


class _Attention(torch.autograd.Function):
    """softmax(scaling q k^T + bias) v, with one or more query heads to a key head.

    q [B, Hq, T, D], k and v [B, Hk, S, D], bias [B or 1, 1, T, S]. In the names below G is batch times key
    heads, and the query heads of one key head are laid end to end along T.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scaling: float) -> Tensor:
        k_GSD, v_GSD = k.flatten(0, 1), v.flatten(0, 1)
        q_GTD = (q * scaling).reshape(len(k_GSD), -1, q.shape[-1])
        scores_GTS = torch.bmm(q_GTD, k_GSD.transpose(1, 2))
        weights_GTS = scores_GTS.view(*q.shape[:3], -1).add_(bias).softmax(-1).view_as(scores_GTS)
        ctx.save_for_backward(q_GTD, k_GSD, v_GSD, weights_GTS)
        ctx.scaling, ctx.shapes = scaling, (q.shape, k.shape)
        return torch.bmm(weights_GTS, v_GSD).view(q.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q_GTD, k_GSD, v_GSD, weights_GTS = ctx.saved_tensors
        q_shape, k_shape = ctx.shapes
        grad_GTD = grad.reshape(q_GTD.shape)
        # o = w v, so dv = w^T do and dw = do v^T; w = softmax(s); s = (scaling q) k^T gives q and k their gradients
        grad_v = torch.bmm(weights_GTS.transpose(1, 2), grad_GTD)
        grad_weights = torch.bmm(grad_GTD, v_GSD.transpose(1, 2))
        grad_scores = softmax_backward(grad_weights, weights_GTS, -1, weights_GTS.dtype)
        grad_q = torch.bmm(grad_scores, k_GSD).mul_(ctx.scaling)
        grad_k = torch.bmm(grad_scores.transpose(1, 2), q_GTD)
        return grad_q.view(q_shape), grad_k.view(k_shape), grad_v.view(k_shape), None, None


class _Pad(torch.autograd.Function):
    """[H, tokens, D] to [H, G T, D]; what padding would send back is dropped."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.index_select(1, group.places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.index_select(1, ctx.group.real), None


class _Unpad(torch.autograd.Function):
    """[H, G T, D] to [H, tokens, D]; padding gets no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group, ctx.shape = group, x.shape
        return x.index_select(1, group.real)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.new_zeros(ctx.shape).index_copy_(1, ctx.group.real, grad), None


def _packed_attention(qkv: tuple[Tensor, Tensor, Tensor], packed: list[Group], scaling: float) -> Tensor:
    """Attention of each text of a packed row: q [1, Hq, N, D], k and v [1, Hk, N, D] to [1, Hq, N, D]."""
    parts = zip(*(x[0].split([group.tokens for group in packed], dim=1) for x in qkv), strict=True)
    outs = []
    for group, part in zip(packed, parts, strict=True):
        length = group.bias.shape[-1]
        q, k, v = (_Pad.apply(x, group).unflatten(1, (-1, length)).transpose(0, 1) for x in part)
        out = _Attention.apply(q, k, v, group.bias, scaling)
        outs.append(_Unpad.apply(out.transpose(0, 1).flatten(1, 2), group))
    return torch.cat(outs, dim=1)[None]


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed: list[Group] | Varlen | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: `_Attention` for whole short rows on a CPU, `sdpa` for all else.

    Query [B, Hq, T, D], key and value [B, Hk, S, D]; a mask is added to the scores, and without one the rows
    are causal. With `packed`, one row of several texts that brings their masks. Returns [B, T, Hq, D] and no
    weights. Raises `ValueError` for what a model asks beyond that: attention sinks, capped scores, a bias.
    """
    if asked := sorted(k for k, v in kwargs.items() if v is not None and k not in UNDERSTOOD):
        raise ValueError(f"{type(module).__name__} asks its attention for {', '.join(asked)}")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if isinstance(packed, Varlen):
        return varlen_attention(query, key, value, packed, scaling), None
    if packed is not None:
        return _packed_attention((query, key, value), packed, scaling).transpose(1, 2), None
    length = query.shape[2]
    masked_rows = attention_mask is not None and attention_mask.is_floating_point()
    causal = kwargs.get("is_causal", getattr(module, "is_causal", True))
    causal_rows = attention_mask is None and length == key.shape[2] and causal
    if query.device.type != "cpu" or dropout or length > LONGEST or not (masked_rows or causal_rows):
        out: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return out
    bias = causal_bias(length, query.dtype) if attention_mask is None else attention_mask
    return _Attention.apply(query, key, value, bias, scaling).transpose(1, 2), None


def end_to_end(
    lengths: Sequence[int], segments_BT: Tensor | None, dtype: torch.dtype, device: torch.device
) -> list[Group] | Varlen:
    """What `attention` is told of texts of these lengths in one row on a device; `segments_BT` lie on the host."""
    if forms_on(device.type).packing is Packing.varlen:
        return varlen(lengths, segments_BT).to(device)
    return pack(lengths, segments_BT, dtype)


def real_places(lengths: Sequence[int], width: int) -> Tensor:
    """int64 [N]: where the real tokens of rows of these lengths lie, row after row of `width`."""
    return torch.cat([torch.arange(i * width, i * width + n) for i, n in enumerate(lengths)])


def pack(lengths: Sequence[int], segments_BT: Tensor | None, dtype: torch.dtype) -> list[Group]:
    """The groups of texts of these lengths, end to end in one row; `segments_BT` as for `shared_prompt_bias`."""
    groups, start = [], 0
    while start < len(lengths):
        end = start + 1
        while end < len(lengths) and _alike(lengths[start : end + 1]):
            end += 1
        longest = max(lengths[start:end])
        if segments_BT is None:
            bias = causal_bias(longest, dtype)
        else:
            bias = shared_prompt_bias(segments_BT[start:end, :longest], dtype)
        groups.append(_group(torch.tensor(lengths[start:end]), bias))
        start = end
    return groups


def _alike(lengths: Sequence[int]) -> bool:
    return min(lengths) >= ALIKE * max(lengths)


def _group(lengths_G: Tensor, bias: Tensor) -> Group:
    within_T = torch.arange(bias.shape[-1])
    real_GT = within_T < lengths_G[:, None]
    starts_G = lengths_G.cumsum(0) - lengths_G
    places = (starts_G[:, None] + within_T).where(real_GT, 0)
    return Group(int(lengths_G.sum()), places.flatten(), real_GT.flatten().nonzero().squeeze(1), bias)


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
