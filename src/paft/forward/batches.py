"""Rows as padded tensors, those of like length together."""

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from paft.chat.tokens import IGNORE, Encoded, EncodedAnswer, EncodedPair

HOST = torch.device("cpu")
Row = TypeVar("Row", bound=Encoded | EncodedPair | EncodedAnswer)


def micro_batches(
    rows: Sequence[Row], size: int, max_tokens: float = math.inf, *, packed: bool = False
) -> list[list[Row]]:
    """Rows of like length together, so that little is padding; their order inside a step changes nothing.

    At most `size` rows and `max_tokens` tokens, with their padding unless `packed`; a longer row goes alone.
    """
    cut: list[list[Row]] = []
    room = 0.0
    for row in sorted(rows, key=lambda row: row.row_tokens, reverse=True):
        tokens = row.row_tokens if packed or not cut else cut[-1][0].row_tokens
        if not cut or len(cut[-1]) == size or room < tokens:
            cut.append([])
            room, tokens = max_tokens, row.row_tokens
        cut[-1].append(row)
        room -= tokens
    return cut


def pad(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Token lists as int64 [B, T], padded on the right."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], dtype=torch.long)


def placed(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; from the host to a GPU without waiting for what that is at."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def sft_tensors(
    rows: Sequence[Encoded], pad_id: int, device: torch.device = HOST
) -> tuple[Tensor, Tensor, Tensor]:
    """(input_ids [B, T], labels [B, T], tokens of each row [B]); the last on the host, which cuts rows by it."""
    ids = [r.input_ids for r in rows]
    ids_BT, labels_BT = pad(ids, pad_id), pad([r.labels for r in rows], IGNORE)
    return placed(ids_BT, device), placed(labels_BT, device), torch.tensor([*map(len, ids)])
