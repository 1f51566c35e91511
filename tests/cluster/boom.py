"""A callback that fails in one rank."""

import lightning as L
from lightning.pytorch.callbacks import Callback


class Boom(Callback):
    """Raises in step 1 of rank 1, while the other ranks go on to their next exchange."""

    def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_rank == 1 and trainer.global_step == 1:
            raise RuntimeError("boom in rank 1")
