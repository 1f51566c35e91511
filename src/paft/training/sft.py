"""Supervised fine-tuning with an L1 penalty on the delta: equation 1 of the paper."""

import math
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from paft.chat.tokens import Encoded
from paft.config import L1Method, L1Of, SFTConfig
from paft.forward.batches import sft_tensors
from paft.losses import l1_penalty, mean_nll
from paft.training.batches import GlobalBatch
from paft.training.module import BranchModule
from paft.training.proximal import proximal_step
from paft.training.sparsity_control import SparsityControl, measured_share


class SFTModule(BranchModule):
    """L = L_SFT + lambda |delta_sft|_1; lambda = 0 is plain SFT.

    L_SFT is the mean over all answer tokens of the global batch. Logs loss, its nll and l1 parts; with
    `l1.target_sparsity` also lambda and, where it was measured, the sparsity it follows.
    """

    config: SFTConfig

    @cached_property
    def control(self) -> SparsityControl:
        warmup = math.ceil(self.config.warmup_ratio * self.num_steps)
        return SparsityControl(self.config.l1, num_steps=self.num_steps, first_step=warmup)

    @property
    def proximal(self) -> bool:
        return self.config.l1.method is L1Method.proximal and self.config.l1.weight > 0

    def micro_loss(self, rows: list[Encoded], batch: GlobalBatch[Any]) -> tuple[Tensor, dict[str, Tensor]]:
        tensors = sft_tensors(rows, self.pad_id, self.device)
        nll = mean_nll(self.backbone(*tensors), batch.num_targets)
        return nll, {"nll": nll}

    def penalty(self) -> Tensor | None:
        l1 = self.config.l1
        if l1.weight == 0 or self.proximal:
            return None
        own = self.backbone.own_deltas(whole_A=l1.of is L1Of.delta)
        # offloaded ones too
        layers = [d.to(self.device) for d in own]
        return self.control.weight * l1_penalty(layers, of=l1.of.value)

    # --- the proximal step ---------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        configured = super().configure_optimizers()
        if self.proximal:
            configured["optimizer"].register_step_post_hook(self._shrink)
        return configured

    def _clip(self) -> Tensor:
        norm = super()._clip()
        if self.proximal:  # as torch clips; a subgradient would have been clipped with the rest
            self.kept_of_gradient = min(1.0, self.config.max_grad_norm / (float(norm) + 1e-6))
        return norm

    def _shrink(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        kept, weight = self.kept_of_gradient, self.control.weight
        deltas = self.backbone.stored_deltas()
        penalty = proximal_step(deltas, optimizer, of=self.config.l1.of, weight=weight * kept)
        self.shrunk_by = penalty / kept if kept else penalty

    # --- the controller --------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: GlobalBatch[Any], batch_idx: int) -> None:
        """Measure what the steps before this one have made; all ranks go by what rank 0 finds."""
        if not self.control.due(batch.step):
            return
        share = measured_share(self.backbone.deltas(), self.config.l1.target_measure)
        share = self.trainer.strategy.broadcast(share)
        self.control.update(share, batch.step)
        for logger in self.trainer.loggers:  # not self.log, which would repeat the value at every later step
            logger.log_metrics({"train/controlled_sparsity": share}, batch.step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["sparsity_control"] = self.control.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.control.load(checkpoint["sparsity_control"])

    def _log(self, logs: dict[str, Tensor]) -> None:
        if self.proximal:
            logs |= {"l1": self.shrunk_by, "loss": logs["loss"] + self.shrunk_by}
        if self.config.l1.target_sparsity is not None:
            logs["lambda"] = torch.tensor(self.control.weight)
        super()._log(logs)
