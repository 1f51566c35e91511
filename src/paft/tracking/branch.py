"""One W&B run for each branch that is trained; its id is the stage's key."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paft.config import Wandb
from paft.delta.full import FILE, trained_folder
from paft.graph.build import lambda_of
from paft.graph.stage import Stage, canonical
from paft.store.context import Context
from paft.tracking.run import let_go, start, survive

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger


def branch_id(stage: Stage) -> str:
    return f"{stage.name}-{stage.key}"


def branch_logger(stage: Stage, context: Context) -> "Logger | None":
    """The Lightning logger of a branch's run; None on every rank but the first."""
    if os.environ.get("RANK", "0") != "0":
        return None
    from paft.tracking.logger import TrackedRun

    config = {"stage": stage.name, "key": stage.key, **canonical(stage.config)}
    penalty = lambda_of(stage)
    name = (
        f"{stage.name} {stage.key[:6]}"
        if penalty is None
        else f"{stage.name} lambda={penalty:g} {stage.key[:6]}"
    )
    run = start(branch_id(stage), name, stage.name, config, context)
    return None if run is None else TrackedRun(run)


def finish_branch(stage: Stage, out: Path, metrics: dict[str, Any], context: Context) -> None:
    """Summary of a branch's run and the artifact of what it trained, then close it."""
    if not isinstance(context.running.logger, Wandb):
        return
    import wandb

    def act() -> bool:
        run = wandb.run
        if run is None:
            return True
        run.summary.update(metrics)
        trained = trained_folder(out)
        place = str(context.store.path(stage) / trained.name)
        metadata = {"key": stage.key, "stage": stage.name, "folder": place}
        artifact = wandb.Artifact(branch_id(stage), type=trained.name, metadata=metadata)
        for path in sorted(trained.iterdir()):
            if path.name != FILE:  # as large as the model: `folder` says where it is
                artifact.add_file(str(path))
        run.log_artifact(artifact)
        run.finish()
        return True

    if not survive(f"finishing the run of {stage}", act):
        let_go()
