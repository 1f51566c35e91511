"""W&B's Lightning logger, whose failures cost its curve and nothing else."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from paft.tracking.run import let_go

if TYPE_CHECKING:
    from wandb import Run

log = logging.getLogger("paft")


class TrackedRun(WandbLogger):
    """Logs to `run` until that fails once: W&B works in a process of its own, which may die or be killed."""

    def __init__(self, run: "Run") -> None:
        super().__init__(experiment=run)
        self.lost = False

    @override
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self.lost:
            return
        try:
            super().log_metrics(metrics, step)
        except Exception as error:  # whatever W&B raises must not end a training run
            self.lost = True
            log.warning(
                "W&B: logging step %s failed, going on without it (history.csv has every step): %s: %s",
                step,
                type(error).__name__,
                error,
            )
            let_go()
