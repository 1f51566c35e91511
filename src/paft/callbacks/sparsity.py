"""How sparse the delta is while it trains."""

from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from paft.delta.statistics import SMALL, LowRank, dense


class DeltaSparsity(Callback):
    """Logs `train/sparsity`, the share of |delta| below 1e-5, mean over layers, as the paper's Figure 2."""

    def __init__(self, every_n_train_steps: int = 10) -> None:
        if every_n_train_steps < 1:
            raise ValueError(
                f"callbacks.sparsity.every_n_train_steps must be positive, got {every_n_train_steps}"
            )
        self.every_n_train_steps = every_n_train_steps

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step % self.every_n_train_steps and step != trainer.max_steps:
            return
        share = share_below(pl_module.backbone.deltas())
        # not pl_module.log: Lightning would repeat the value at every later step
        for logger in trainer.loggers:
            logger.log_metrics({"train/sparsity": share}, step - 1)  # the step just made, counted from 0


@torch.no_grad()
def share_below(deltas: Iterable[LowRank | Tensor], threshold: float = SMALL) -> float:
    """Share of elements below `threshold` in magnitude, mean over layers; holds one layer's delta at a time."""
    shares = [(dense(delta).abs() < threshold).float().mean() for delta in deltas]
    return float(torch.stack(shares).mean())
