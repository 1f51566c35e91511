"""Answers to log-likelihood requests as they add up, batch by batch, and what a journal keeps of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from paft.files.journal import Journal
from paft.forward.tree import Row


@dataclass
class Tally:
    """The answers of requests as they add up, batch by batch, in one order."""

    sums: Tensor
    greedy: Tensor
    bar: tqdm
    journal: Journal | None = None
    name: str = ""
    """Of these requests in the journal."""
    number: int = field(default=0, init=False)
    """Of the next batch."""
    left: bool = field(default=False, init=False)
    """Whether something was left to other processes."""

    def has(self, count: int) -> bool:
        """Whether the next batches are all kept."""
        return self.journal is not None and all(self.kept(ahead) for ahead in range(count))

    def leave(self, count: int) -> None:
        """The next batches to other processes."""
        self.number += count
        self.left = True

    def kept(self, ahead: int = 0) -> list[list[Any]] | None:
        """What a run before this one found in the next batch, or one further `ahead`."""
        found: list[list[Any]] | None = None
        if self.journal is not None:
            found = self.journal.get(f"{self.name} {self.number + ahead}")
        return found

    def take(self, rows: Sequence[Row], found: list[list[Any]] | None) -> None:
        """Add what was found in the next batch, by default what is kept of it: of every target its request, its
        log-probability and whether it is the likeliest."""
        kept = self.kept()
        if self.journal is not None and found and not kept:
            self.journal.put(f"{self.name} {self.number}", found)
        self.number += 1
        self.bar.update(sum(len(row.tokens) for row in rows))
        indices, logps, likeliest = kept or found or [[], [], []]
        if indices:
            self.sums.index_add_(0, torch.tensor(indices), torch.tensor(logps, dtype=torch.float64))
            self.greedy[torch.tensor(indices)[~torch.tensor(likeliest)]] = False
