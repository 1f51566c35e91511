"""A branch that can be killed: `python resumable.py <folder> <sft|preference> <step> [overrides]` dies after that
step."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import hydra
import lightning as L
from hydra.core.global_hydra import GlobalHydra
from lightning.pytorch.callbacks import Callback

from paft.command.compose import register_schemas, to_config
from paft.command.pipeline import context_of
from paft.config import RunConfig
from paft.graph.build import build
from paft.graph.stage import Stage
from paft.store.context import Context
from paft.store.store import Store

CONF = Path(__file__).parents[1] / "conf"
OVERRIDES = (
    "experiment=smoke",
    "lambda=1e-3",
    "callbacks=none",
    "trainer.checkpoint_every=2",
    "trainer.progress_bar=false",
    "data.sft.num_rows=48",
    "data.preference.num_rows=48",
    "sft.lora.dropout=0.1",
    "preference.lora.dropout=0.1",
)


class KillAfter(Callback):
    """SIGKILL to its own process once `step` optimizer steps are done: no clean-up of any kind runs."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def configured(folder: Path, *overrides: str) -> RunConfig:
    register_schemas()
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return to_config(hydra.compose("train", overrides=[*OVERRIDES, f"logs={folder}", *overrides]))


def stage_of(config: RunConfig, name: str) -> tuple[Stage, Context]:
    """The branch's stage and what it runs in; its inputs are made where they are missing."""
    cell, store = build(config), Store(config.store)
    context = context_of(config, store, cell)
    (stage,) = (s for s in cell.walk() if s.name == name)
    for needed in stage.inputs.values():
        store.ensure(needed, context.run)
    return stage, context


def train(config: RunConfig, name: str, out: Path) -> dict[str, Any]:
    """Run the branch into `out`, going on from what is there."""
    stage, context = stage_of(config, name)
    out.mkdir(parents=True, exist_ok=True)
    return context.run(stage, {n: context.store.path(s) for n, s in stage.inputs.items()}, out)


if __name__ == "__main__":
    folder, branch, step, *overrides = Path(sys.argv[1]), *sys.argv[2:]
    kill = "{_target_: resumable.KillAfter, step: " + step + "}"
    train(configured(folder, f"+callbacks.kill={kill}", *overrides), branch, folder / branch)
