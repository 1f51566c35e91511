"""Which rows of a source are kept from training so that a task can be made of them."""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from paft.chat.conversation import Conversation, TrainingRow

FILE = "held_out.jsonl"


def opening(row: TrainingRow) -> str:
    """The first thing a user says: rows that share it are about one conversation, of different lengths perhaps."""
    messages = row.messages if isinstance(row, Conversation) else row.prompt
    return next(m["content"] for m in messages if m["role"] == "user")


def draw(openings: Sequence[str], num_rows: int, seed: int) -> frozenset[int]:
    """The numbers of at least `num_rows` rows, drawn by the seed; rows of one opening stay together.

    Raises `ValueError` if no row would be left to train on.
    """
    rows_of: dict[str, list[int]] = {}
    for number, text in enumerate(openings):
        rows_of.setdefault(text, []).append(number)
    distinct = list(rows_of)
    random.Random(f"paft held out {seed}").shuffle(distinct)
    drawn: set[int] = set()
    for text in distinct:
        if len(drawn) >= num_rows:
            break
        drawn.update(rows_of[text])
    if len(drawn) >= len(openings):
        raise ValueError(
            f"held_out={num_rows} leaves none of {len(openings)} rows to train on; hold out fewer or bring more rows"
        )
    return frozenset(drawn)


def write_held_out(rows: Sequence[TrainingRow], folder: Path) -> None:
    """Write rows of texts alone: others are refused by `paft.data.notes`."""
    texts = ({name: part for name, part in asdict(row).items() if name != "tools"} for row in rows)
    with (folder / FILE).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in texts)


def read_held_out(folder: Path) -> list[dict[str, Any]]:
    """The rows a data stage wrote, in the order of the source: `messages`, or `prompt`, `chosen` and `rejected`."""
    with (folder / FILE).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
