"""A callback that keeps a training at given steps until the test's signal has come."""

import os
import time
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback

from paft.training.checkpoint import Checkpoints


class Hold(Callback):
    """Writes `<folder>/step-<n>` when step n is about to begin, and waits for a signal; n counts from 0.

    Each rank also leaves `<folder>/rank-<r>-on-<SLURM node>`.
    """

    def __init__(self, folder: str, steps: list[int]) -> None:
        self.folder, self.steps = Path(folder), steps

    def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
        node = os.environ.get("SLURMD_NODENAME")
        (self.folder / f"rank-{trainer.global_rank}-on-{node}").touch()
        (saver,) = (c for c in trainer.callbacks if isinstance(c, Checkpoints))  # type: ignore[attr-defined]
        if trainer.global_step not in self.steps or saver.signals.received:
            return
        if trainer.is_global_zero:
            (self.folder / f"step-{trainer.global_step}").touch()
        deadline = time.monotonic() + 90
        while not saver.signals.received:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no signal came in step {trainer.global_step}")
            time.sleep(0.05)
