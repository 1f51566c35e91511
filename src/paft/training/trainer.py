"""The Lightning trainer of a branch: devices, strategy, loggers, callbacks, checkpoints."""

import logging
import warnings
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from paft.config import Running, TrainerConfig
from paft.graph.stage import Stage
from paft.store.context import Context
from paft.tracking.branch import branch_logger
from paft.training.checkpoint import Checkpoints, WholeFiles
from paft.training.history import History
from paft.training.strategy import make_strategy
from paft.training.throughput import Throughput


@runtime_checkable
class NeedsContext(Protocol):
    """A callback that works on stages: told which one it is part of before training starts."""

    def bind(self, context: Context, stage: Stage, out: Path, fingerprints: dict[str, str]) -> None: ...


class ProgressBar(TQDMProgressBar):
    """Steps of the whole run, from where it was resumed; loss, speed, share of the peak and memory of the last one."""

    def __init__(self, branch: str, throughput: Throughput) -> None:
        super().__init__(leave=True)
        self.branch, self.throughput = branch, throughput

    def on_train_start(self, *args: Any) -> None:
        super().on_train_start(*args)
        bar = self.train_progress_bar
        bar.total, bar.initial, bar.n = (
            self.trainer.max_steps,
            self.trainer.global_step,
            self.trainer.global_step,
        )
        bar.set_description(self.branch)

    def on_train_epoch_start(self, *_: Any) -> None:
        """Nothing: all steps are one epoch to Lightning, and it does not begin one where it resumes."""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)  # a logger's version number
        return metrics | self.throughput.shown()


def make_callbacks(context: Context, stage: Stage, out: Path, fingerprints: dict[str, str]) -> list[Callback]:
    """The `callbacks` group, each built from its `_target_`: the place where users bring their own.

    Raises `ValueError` for what is no callback of Lightning's.
    """
    built = {name: instantiate(spec) for name, spec in context.running.callbacks.items() if spec is not None}
    for name, callback in built.items():
        if not isinstance(callback, Callback):
            raise ValueError(
                f"callbacks.{name} is no lightning.pytorch.callbacks.Callback, got {type(callback).__name__}; derive "
                "its class from it"
            )
        if isinstance(callback, NeedsContext):
            callback.bind(context, stage, out, fingerprints)
    return list(built.values())


def make_trainer(
    stage: Stage,
    out: Path,
    context: Context,
    fingerprints: dict[str, str],
    *,
    steps: int,
    throughput: Throughput,
    history: History,
) -> L.Trainer:
    """A trainer that makes exactly `steps` optimizer steps and keeps what a killed run needs in `out/work`.

    `throughput` comes before the user's callbacks, whose time is not its own, and checkpoints after them. Raises
    `ValueError` for callbacks that Lightning refuses, such as a second progress bar or keeper of checkpoints.
    """
    config = context.running.trainer
    silence_expected_warnings()
    checkpoint = Checkpoints(out, history, every=config.checkpoint_every, log_every=config.log_every)
    bar: list[Callback] = [ProgressBar(stage.name, throughput)] if config.progress_bar else []
    callbacks = make_callbacks(context, stage, out, fingerprints)
    tracker = branch_logger(stage, context)
    loggers: list[Logger] = [history, *([tracker] if tracker else [])]
    # determinism needs the same kernels, not every new tensor filled before it is written: a quarter of a step
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        return L.Trainer(
            **_devices(context.running),
            max_steps=steps,
            logger=loggers,
            callbacks=[throughput, *bar, *callbacks, checkpoint],
            **OURS,
        )
    except MisconfigurationException as error:
        names = ", ".join(context.running.callbacks)
        raise ValueError(f"Lightning refuses one of the callbacks ({names}): {error} Leave it out") from error


OURS: dict[str, Any] = dict(
    max_epochs=-1,
    enable_checkpointing=False,  # not Lightning's
    enable_model_summary=False,
    use_distributed_sampler=False,
    limit_val_batches=None,
    num_sanity_val_steps=0,
    val_check_interval=None,
)
"""What Lightning would do by itself and is done here otherwise, or not at all."""


def _devices(running: Running) -> dict[str, Any]:
    config = running.trainer
    alone = config.accelerator == "gpu" and config.world_size == 1 and torch.cuda.is_available()
    return dict(
        accelerator=config.accelerator,
        devices=[torch.cuda.current_device()] if alone else config.devices,  # 1 would be the first GPU
        num_nodes=config.num_nodes,
        strategy=make_strategy(running),
        plugins=[WholeFiles(), *_alone(config)],
        deterministic=config.deterministic or config.accelerator == "cpu",
        log_every_n_steps=config.log_every,
        enable_progress_bar=config.progress_bar,
    )


def _alone(config: TrainerConfig) -> list[LightningEnvironment]:
    """One device is one process, whatever job of a cluster this is: Lightning would ask SLURM for its rank."""
    return [LightningEnvironment()] if config.world_size == 1 else []


def silence_expected_warnings() -> None:
    """Lightning and transformers speak of choices that are deliberate here: our own loader, no workers, no epochs."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for text in (".*does not have many workers.*", ".*litlogger.*", ".*`srun` command is available.*"):
        warnings.filterwarnings("ignore", text)
    warnings.filterwarnings("ignore", ".*in eval mode at the start of training.*")  # the frozen base
    warnings.filterwarnings("ignore", ".*Trying to infer the `batch_size`.*")
    warnings.filterwarnings("ignore", ".*You defined a `validation_step`.*")
    warnings.filterwarnings(
        "ignore", ".*recommended to use .*sync_dist=True.*"
    )  # they are sums over ranks already
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers.*")
