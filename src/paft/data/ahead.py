"""Rows in batches, worked on before they are asked for: a few at a time, however many there are."""

import multiprocessing
import os
import sys
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
ROWS_FOR_PROCESSES = 4 * ROWS
"""Fewer are done by a thread before processes have begun."""
MOST_PROCESSES = 8
"""What one process can read and write the rows of."""


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


def processes_for(num_rows: int) -> int:
    """How many processes tokenise so many rows; 1: a thread of this one does.

    As many as there are cores, or as the tokenizer's own settings RAYON_NUM_THREADS and TOKENIZERS_PARALLELISM allow.
    """
    alone = os.environ.get("TOKENIZERS_PARALLELISM", "").lower() in ("false", "0", "off", "no", "n", "f")
    can_fork = sys.platform == "linux" and not multiprocessing.current_process().daemon
    if alone or not can_fork or num_rows < ROWS_FOR_PROCESSES:
        return 1
    told = os.environ.get("RAYON_NUM_THREADS", "")
    cores = int(told) if told.isdecimal() and int(told) else len(os.sched_getaffinity(0))
    return min(cores, MOST_PROCESSES, -(-num_rows // ROWS))


def ahead(
    work: Callable[[Given], Made], items: Iterable[Given], processes: int = 1
) -> Iterator[tuple[Given, Made]]:
    """Every item with what `work` makes of it, in order.

    A thread works while its reader is at the item before, and one item more is waiting; or several processes do.
    """
    if processes > 1:
        from paft.data.workers import spread

        yield from spread(work, items, processes)
        return
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
