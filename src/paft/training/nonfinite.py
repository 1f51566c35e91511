"""Optimizer steps whose loss or gradient is NaN or infinite: none of them reaches the weights."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from paft.training.checkpoint import last_checkpoint

log = logging.getLogger("paft")


class NotFinite(FloatingPointError):
    """A step, counted from 0 as in history.csv, that may not be left out."""

    def __init__(self, wrong: str, step: int) -> None:
        super().__init__(f"{wrong} at step {step}")
        self.step = step


class LeftOut:
    """The steps a training has left out so far, at most `allowed`."""

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed
        self.steps: list[int] = []

    def must_leave_out(self, step: int, logs: Mapping[str, Tensor]) -> bool:
        """Whether the step is one of them. Totals over the ranks are looked at, so that all ranks agree.

        Raises `NotFinite` if there may be no more.
        """
        wrong = [
            f"{name} is {logs[name].item()}" for name in ("loss", "grad_norm") if not is_finite(logs[name])
        ]
        if not wrong:
            return False
        if len(self.steps) >= self.allowed:
            raise NotFinite(wrong[0], step)
        self.steps.append(step)
        log.warning(
            "%s at step %d: left out, %d of at most %d", wrong[0], step, len(self.steps), self.allowed
        )
        return True


def is_finite(value: Tensor) -> bool:
    return bool(torch.isfinite(value))


class NamesRows(Protocol):
    """A loader that knows which rows a step has."""

    def row_ids(self, step: int) -> list[int]: ...


def explained(error: NotFinite, loader: NamesRows, data: Path, out: Path, allowed: int) -> ValueError:
    """The error with the rows of its step, where training can go on from, and what can be done."""
    step, checkpoint = last_checkpoint(out)
    good = (
        f"the last good checkpoint is {checkpoint}, after {step} steps" if checkpoint else "no checkpoint yet"
    )
    return ValueError(
        f"{error}, on rows {loader.row_ids(error.step)} of {data}; {good}. Look at these rows, lower lr or raise "
        f"warmup_ratio; or leave such steps out: trainer.skip_nonfinite_steps={allowed + 1} goes on from the checkpoint"
    )
