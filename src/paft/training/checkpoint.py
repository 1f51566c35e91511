"""What a training saves while it runs, so that the next run goes on after a kill, a signal or a full disk.

Lightning's own checkpoints are written in the system's temporary folder and then copied where that is another
disk: a kill could leave half a file under its final name.
"""

import io
import logging
import os
import re
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from paft.files.replacing import replacing
from paft.process.interrupt import Postponed, stop
from paft.store.damage import WORK
from paft.training.history import History
from paft.training.strategy import largest_of_ranks

log = logging.getLogger("paft")


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its final name and renames it once the disk has it."""

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(exist_ok=True)
        with replacing(Path(path), durable=True) as file:
            target: Any = _Told(file)
            try:
                torch.save(checkpoint, target)
            except Exception as error:
                raise target.error or error from None


class _Told(io.RawIOBase):
    """A file that keeps why it could not be written, which torch's writer hides."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise


class Checkpoints(Callback):
    """Saves every `every` optimizer steps, after the last one, and when a signal or another callback ends the training
    before it; keeps the newest.

    After a signal the step it came in is finished, saved and logged, and `Interrupted` raised, on all ranks at the
    same step. Last among the callbacks: it saves what the others hold.
    """

    def __init__(self, out: Path, history: History, *, every: int, log_every: int) -> None:
        self.out, self.history, self.every, self.log_every = out, history, every, log_every
        self.signals = Postponed()  # now, as Lightning puts its own handlers in place before training starts
        self.stopped_by = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.signals.begin()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        # a signal may reach the ranks in different steps, and some not at all
        asked = largest_of_ranks(2 * self.signals.received + trainer.should_stop, trainer)
        self.stopped_by = asked // 2
        if asked or step % self.every == 0 or step == trainer.max_steps:
            self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        step = trainer.global_step
        if step % self.log_every == 0:
            # Lightning logs a step only after its callbacks: a kill in between would lose it
            self.history.log_step(trainer.callback_metrics, step - 1)
        path = self.out / WORK / f"step={step}.ckpt"
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            for older in set(checkpoints(self.out).values()) - {path}:
                older.unlink()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._stop_if_asked()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.signals.end()
        self._stop_if_asked()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self.signals.end()

    def _stop_if_asked(self) -> None:
        if self.stopped_by:
            stop(self.stopped_by)


def checkpoints(out: Path) -> dict[int, Path]:
    """Step -> checkpoint file of the training in `out`."""
    checkpoints = ((re.fullmatch(r"step=(\d+)\.ckpt", p.name), p) for p in (out / WORK).glob("*.ckpt"))
    return {int(match[1]): path for match, path in checkpoints if match}


def last_checkpoint(out: Path) -> tuple[int, Path | None]:
    """(step, file) to go on from: the newest one that is whole, or (0, None). A damaged one is reported."""
    for step, path in sorted(checkpoints(out).items(), reverse=True):
        if is_whole(path):
            return step, path
        if os.environ.get("RANK", "0") == "0":
            log.warning("%s is damaged: going on from the checkpoint before it, or from the start", path)
    return 0, None


def is_whole(path: Path) -> bool:
    """True if a checkpoint's archive is complete and its checksums hold; nothing in it is unpickled."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError):
        return False
