"""Attention of texts that lie end to end in one row, by one kernel that is told where each begins.

What the kernel needs is worked out on the host, from lengths alone. An answer that shares its prompt with another is
told so by its keys: those of the prompt come again before its own. The kernel is causal from the end: the last of a
text's queries sees all its keys.
"""

import inspect
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST_HEAD = 256
"""Of the kernel: elements of one head."""


class Varlen(NamedTuple):
    """N texts in one row of queries, and the keys of each."""

    queries: Tensor
    """int32 [N + 1]: where each text's queries begin in the row, and where the last ends."""
    keys: Tensor
    """int32 [N + 1]: where each text's keys begin."""
    longest_query: int
    longest_key: int
    places: Tensor | None = None
    """int64 [keys]: which token of the row each key is of; None: the row as it is."""

    def to(self, device: torch.device) -> "Varlen":
        places = None if self.places is None else self.places.to(device)
        return self._replace(queries=self.queries.to(device), keys=self.keys.to(device), places=places)


def varlen(lengths: Sequence[int], segments_BT: Tensor | None = None) -> Varlen:
    """Of rows of these lengths, end to end; with `segments_BT`, each a prompt (0) and then texts that go on from it.

    Segments are numbered as `paft.model.layers.attention.shared_prompt_bias` reads them, and each is in one piece.
    """
    rows = [[0, length] for length in lengths] if segments_BT is None else _pieces(lengths, segments_BT)
    queries, keys, places, end = [0], [0], list[int](), 0
    for prompt, *texts in rows:
        shared = range(end, end + prompt)
        end += prompt
        for i, length in enumerate(texts or [0]):
            before = shared if i else ()  # the first text's queries begin with the prompt's own
            own = range(end if i else shared.start, end + length)
            end += length
            places += [*before, *own]
            queries.append(end)
            keys.append(len(places))
    longest_query, longest_key = (max(b - a for a, b in pairwise(x)) for x in (queries, keys))
    return Varlen(
        torch.tensor(queries, dtype=torch.int32),
        torch.tensor(keys, dtype=torch.int32),
        longest_query,
        longest_key,
        None if segments_BT is None else torch.tensor(places),
    )


def _pieces(lengths: Sequence[int], segments_BT: Tensor) -> list[list[int]]:
    """Of each row the tokens of its prompt, which may be none, and of each text after it."""
    pieces = []
    for length, row in zip(lengths, segments_BT, strict=True):
        numbers, counts = row[:length].unique_consecutive(return_counts=True)
        prompt = [] if numbers[:1].tolist() == [0] else [0]
        pieces.append([*prompt, *counts.tolist()])
    return pieces


def varlen_attention(q: Tensor, k: Tensor, v: Tensor, texts: Varlen, scaling: float) -> Tensor:
    """q [1, Hq, T, D], k and v [1, Hk, T, D] to [1, T, Hq, D]; each query sees its own text's keys up to itself."""
    q_THD, k_SHD, v_SHD = (x[0].transpose(0, 1) for x in (q, k, v))
    if texts.places is not None:
        k_SHD, v_SHD = (x.index_select(0, texts.places) for x in (k_SHD, v_SHD))
    attend = _by_kernel if takes_kernel(q) else _one_by_one
    return attend(q_THD, k_SHD, v_SHD, texts, scaling)[None]


def takes_kernel(q: Tensor) -> bool:
    """Flash attention is for half precision on GPUs; elsewhere each text is attended to by itself."""
    half = q.dtype in (torch.bfloat16, torch.float16)
    return q.device.type == "cuda" and half and q.shape[-1] <= LARGEST_HEAD and q.shape[-1] % 8 == 0


def _by_kernel(q_THD: Tensor, k_SHD: Tensor, v_SHD: Tensor, texts: Varlen, scaling: float) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    grouped: dict[str, Any] = (
        {"enable_gqa": True} if q_THD.shape[1] != k_SHD.shape[1] and _names_groups() else {}
    )
    out: Any = varlen_attn(
        q_THD,
        k_SHD,
        v_SHD,
        texts.queries,
        texts.keys,
        texts.longest_query,
        texts.longest_key,
        scale=scaling,
        window_size=(-1, 0),
        **grouped,
    )
    return out


@cache
def _names_groups() -> bool:
    """Versions that do not ask take fewer key heads as they come."""
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


def _one_by_one(q_THD: Tensor, k_SHD: Tensor, v_SHD: Tensor, texts: Varlen, scaling: float) -> Tensor:
    sizes = [x.diff().tolist() for x in (texts.queries, texts.keys)]
    outs = []
    parts = (x.split(n) for x, n in ((q_THD, sizes[0]), (k_SHD, sizes[1]), (v_SHD, sizes[1])))
    for part in zip(*parts, strict=True):
        q, k, v = (x.transpose(0, 1)[None] for x in part)
        before = k.shape[2] - q.shape[2]
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(before)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scaling, enable_gqa=True)
        outs.append(out[0].transpose(0, 1))
    return torch.cat(outs)
