"""The Lightning trainer of a branch: devices, strategy, loggers, callbacks, checkpoints."""

import logging
import re
import warnings
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import Logger

from paft.run import Context
from paft.stage import Stage
from paft.tracking import branch_logger
from paft.training.history import History
from paft.training.strategy import make_strategy
from paft.training.throughput import Throughput


@runtime_checkable
class NeedsContext(Protocol):
    """A callback that works on stages: told which one it is part of before training starts."""

    def bind(self, context: Context, stage: Stage, out: Path, fingerprints: dict[str, str]) -> None: ...


def bind(callback: Callback, context: Context, stage: Stage, out: Path, fingerprints: dict[str, str]) -> None:
    if isinstance(callback, NeedsContext):
        callback.bind(context, stage, out, fingerprints)


class ProgressBar(TQDMProgressBar):
    """Loss, tokens per second, share of the peak and peak memory of the last step."""

    def __init__(self, throughput: Throughput) -> None:
        super().__init__(leave=True)
        self.throughput = throughput

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)  # a logger's version number
        return metrics | self.throughput.shown()


def make_callbacks(context: Context) -> list[Callback]:
    """The `callbacks` group, each built from its `_target_`: the place where users bring their own."""
    return [instantiate(spec) for spec in context.config.callbacks.values()]


def make_trainer(
    stage: Stage, out: Path, context: Context, callbacks: list[Callback], steps: int, throughput: Throughput
) -> L.Trainer:
    """A trainer that makes exactly `steps` optimizer steps and checkpoints into `out/checkpoints`.

    `throughput` comes before `callbacks`, whose time is not its own.
    """
    config = context.config.trainer
    silence_expected_warnings()
    checkpoint = ModelCheckpoint(
        out / "checkpoints", filename="{step}", every_n_train_steps=config.checkpoint_every, save_top_k=1
    )
    bar: list[Callback] = [ProgressBar(throughput)] if config.progress_bar else []
    tracker = branch_logger(stage, context)
    loggers: list[Logger] = [History(out, resumed_step(out)), *([tracker] if tracker else [])]
    # determinism needs the same kernels, not every new tensor filled before it is written: a quarter of a step
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return L.Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=make_strategy(context.config),
        max_steps=steps,
        max_epochs=-1,
        logger=loggers,
        log_every_n_steps=config.log_every,
        callbacks=[throughput, *bar, *callbacks, checkpoint],
        enable_progress_bar=config.progress_bar,
        enable_model_summary=False,
        deterministic=config.accelerator == "cpu",
        use_distributed_sampler=False,
        limit_val_batches=None,
        num_sanity_val_steps=0,
        val_check_interval=None,
    )


def checkpoints(out: Path) -> dict[int, Path]:
    """Step -> checkpoint file in `out/checkpoints`."""
    found = ((re.fullmatch(r"step=(\d+)\.ckpt", p.name), p) for p in (out / "checkpoints").glob("*.ckpt"))
    return {int(match[1]): path for match, path in found if match}


def last_checkpoint(out: Path) -> str | None:
    steps = checkpoints(out)
    return str(steps[max(steps)]) if steps else None


def resumed_step(out: Path) -> int:
    return max(checkpoints(out), default=0)


def silence_expected_warnings() -> None:
    """Lightning and transformers speak of choices that are deliberate here: our own loader, no workers, no epochs."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for text in (".*does not have many workers.*", ".*Checkpoint directory.*exists.*", ".*litlogger.*"):
        warnings.filterwarnings("ignore", text)
    warnings.filterwarnings("ignore", ".*Trying to infer the `batch_size`.*")
    warnings.filterwarnings("ignore", ".*You defined a `validation_step`.*")
    warnings.filterwarnings("ignore", "Using ModelCheckpoint with manual optimization.*")
    warnings.filterwarnings("ignore", "The dirpath has changed.*")  # .partial was moved or copied
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers.*")
