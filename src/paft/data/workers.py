"""Batches worked on by several processes, each of which reads all rows and takes every so-many-th batch.

Torch's loader forks, hands the results over in order, and ends its processes with the one that asked.
"""

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar, cast

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

Given = TypeVar("Given")
Made = TypeVar("Made")


def spread(
    work: Callable[[Given], Made], items: Iterable[Given], processes: int
) -> Iterator[tuple[Given, Made]]:
    """Every item with what `work` makes of it, in order. `items` must not have been begun; raises its `ValueError`s."""
    loader = DataLoader(
        _Share(work, items),
        batch_size=None,
        num_workers=processes,
        collate_fn=_as_it_is,
        multiprocessing_context="fork",
        worker_init_fn=_leave_signals,
        generator=torch.Generator(),  # a loader draws from it, and nothing else is to be drawn otherwise for that
    )
    for done in cast(Iterable[tuple[Given, Made] | ValueError], loader):
        if isinstance(done, ValueError):
            raise done
        yield done


class _Share(IterableDataset[tuple[Given, Made] | ValueError], Generic[Given, Made]):
    """In each process its share of the items; an error of reading them is the last."""

    def __init__(self, work: Callable[[Given], Made], items: Iterable[Given]) -> None:
        self.work = work
        self.items = items

    def __iter__(self) -> Iterator[tuple[Given, Made] | ValueError]:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads of the tokenizer do not live through a fork
        process = get_worker_info()
        assert process is not None, "there is no loader without processes"
        try:
            for number, item in enumerate(self.items):
                if number % process.num_workers == process.id:
                    yield item, self.work(item)
        except ValueError as error:
            yield error


def _leave_signals(_: int) -> None:
    """Whoever interrupts a run interrupts the process that asked, which then ends these."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _as_it_is(done: Made) -> Made:
    return done
