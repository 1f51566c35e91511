"""A callback that keeps the first trainings of a grid until so many processes train at once."""

import os
import time
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback


class Meet(Callback):
    """Writes `<folder>/<host>-<pid>` as a training begins, and waits until so many `processes` have written theirs.

    Trainings of the tiny model take less than a second: without this, of processes that share the work one might be
    done before the next begins.
    """

    def __init__(self, folder: str, processes: int) -> None:
        self.folder, self.processes = Path(folder), processes

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{os.uname().nodename}-{os.getpid()}").touch()
        deadline = time.monotonic() + 120
        while len(list(self.folder.iterdir())) < self.processes:
            if time.monotonic() > deadline:
                raise TimeoutError(f"fewer than {self.processes} processes train")
            time.sleep(0.05)
