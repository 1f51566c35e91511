"""Rows in batches, worked on in a thread before they are asked for: a few at a time, however many there are."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import TypeVar

from paft.chat.conversation import Conversation, PreferencePair, TrainingRow, UnpairedRow, messages_of
from paft.chat.unwritten import texts_in

Row = TypeVar("Row", Conversation, PreferencePair, UnpairedRow)
Given = TypeVar("Given")
Made = TypeVar("Made")

ROWS = 256
CHARACTERS = 2**20
"""What a batch may have. A token is some 100 bytes while it is being made."""


def batches(rows: Iterable[tuple[str, Row]]) -> Iterator[list[tuple[str, Row]]]:
    """Located rows in lists of at most `ROWS` that end with the row that makes them `CHARACTERS` long."""
    batch, size = list[tuple[str, Row]](), 0
    for located in rows:
        batch.append(located)
        size += _characters(located[1])
        if len(batch) == ROWS or size >= CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _characters(row: TrainingRow) -> int:
    texts = (message["content"] for message in messages_of(row))
    return sum(map(len, chain(texts, texts_in(row.tools))))


def ahead(work: Callable[[Given], Made], items: Iterable[Given]) -> Iterator[tuple[Given, Made]]:
    """Every item with what `work` makes of it, in order.

    A thread works while its reader is at the item before; one item more is waiting.
    """
    with ThreadPoolExecutor(1) as pool:
        begun: deque[tuple[Given, Future[Made]]] = deque()
        for item in items:
            begun.append((item, pool.submit(work, item)))
            if len(begun) > 1:
                yield _finished(begun)
        while begun:
            yield _finished(begun)


def _finished(begun: deque[tuple[Given, Future[Made]]]) -> tuple[Given, Made]:
    item, future = begun.popleft()
    return item, future.result()
