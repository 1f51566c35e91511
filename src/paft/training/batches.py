"""Which rows make which global batch, and how a rank's share of one is cut into padded micro-batches.

Everything is a function of (seed, step): a run that resumes at step k sees exactly the batches it would have.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from paft.chat.tokens import Encoded, EncodedAnswer, EncodedPair

Row = TypeVar("Row", bound=Encoded | EncodedPair | EncodedAnswer)


@dataclass(frozen=True)
class GlobalBatch(Generic[Row]):
    """One optimizer step as one rank sees it: its own rows, and totals over all ranks."""

    step: int
    rows: Sequence[Row]
    num_rows: int
    num_targets: int
    """Label tokens of the whole global batch (SFT), of both answers (preference)."""
    num_sequence_targets: int = 0
    """Tokens of prompt and chosen answer that have a past: ORPO's default likelihood scope."""
    num_chosen_targets: int = 0
    num_good: int = 0
    """Of unpaired rows those whose answer is judged good."""
    kl: Tensor | None = None
    """Of an objective that `needs_kl`: its reference point."""
    places: Sequence[int] = ()
    """Of its rows among those of all ranks: what tells them apart to dropout; () where they are all."""


def num_steps(num_rows: int, *, global_batch_size: int, epochs: int, max_steps: int | None) -> int:
    """Optimizer steps of a run. Raises `ValueError` if there are fewer rows than one global batch."""
    if num_rows < global_batch_size:
        raise ValueError(
            f"global_batch_size={global_batch_size} is more than the {num_rows} training rows; "
            "lower it or give more rows"
        )
    return max_steps or epochs * (num_rows // global_batch_size)


@lru_cache(maxsize=2)
def row_order(num_rows: int, *, seed: int, epoch: int) -> tuple[int, ...]:
    """The rows in this epoch's random order, the same on every machine."""
    generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
    return tuple(torch.randperm(num_rows, generator=generator).tolist())


class StepLoader(Generic[Row]):
    """Iterates over `GlobalBatch`es from step `start` on; the rest of an epoch's last batch is left out.

    Lightning saves and restores `state_dict`, so that a resumed run goes on with the next batch.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        global_batch_size: int,
        steps: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.rows, self.size, self.steps, self.seed = rows, global_batch_size, steps, seed
        self.rank, self.world = rank, world
        self.start = 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[GlobalBatch[Row]]:
        for step in range(self.start, self.steps):
            self.start = step + 1
            yield self.at(step)
        self.start = 0

    def at(self, step: int) -> GlobalBatch[Row]:
        return self._batch(step, [self.rows[i] for i in self.row_ids(step)])

    def row_ids(self, step: int) -> list[int]:
        """Rows of the data folder, counted from 0, in a step's global batch."""
        epoch, position = divmod(step, len(self.rows) // self.size)
        order = row_order(len(self.rows), seed=self.seed, epoch=epoch)
        return list(order[position * self.size : (position + 1) * self.size])

    def _batch(self, step: int, whole: list[Row]) -> GlobalBatch[Row]:
        pairs = [row for row in whole if isinstance(row, EncodedPair)]
        return GlobalBatch(
            step=step,
            rows=whole[self.rank :: self.world],
            num_rows=len(whole),
            num_targets=sum(row.num_labels for row in whole),
            num_sequence_targets=sum(len(row.prompt_ids) + len(row.chosen_ids) - 1 for row in pairs),
            num_chosen_targets=sum(len(row.chosen_ids) for row in pairs),
            num_good=sum(row.label for row in whole if isinstance(row, EncodedAnswer)),
            places=range(len(whole))[self.rank :: self.world],
        )

    def state_dict(self) -> dict[str, Any]:
        return {"start": self.start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.start = state["start"]
