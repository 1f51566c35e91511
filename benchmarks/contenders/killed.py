"""A callback that kills the training it is part of: `+callbacks.kill={_target_: killed.KillAfter, step: 7}`."""

import os
import signal
from typing import Any

import lightning as L


class KillAfter(L.Callback):
    """SIGKILL to its own process once `step` optimizer steps are done: no clean-up of any kind runs."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)
