"""Supervised fine-tuning with an L1 penalty on the delta: equation 1 of the paper."""

from typing import Any

from torch import Tensor

from paft.config import L1Of, SFTConfig
from paft.data.chat import Encoded
from paft.losses import l1_penalty
from paft.training.batches import GlobalBatch, sft_tensors
from paft.training.module import BranchModule


class SFTModule(BranchModule):
    """L = L_SFT + lambda |delta_sft|_1; lambda = 0 is plain SFT.

    L_SFT is the mean over all answer tokens of the global batch. Logs loss, its nll and l1 parts.
    """

    config: SFTConfig

    def micro_loss(self, rows: list[Encoded], batch: GlobalBatch[Any]) -> tuple[Tensor, dict[str, Tensor]]:
        tensors = (t.to(self.device) for t in sft_tensors(rows, self.pad_id))
        nll = -self.backbone(*tensors).sum() / batch.num_targets
        return nll, {"nll": nll}

    def penalty(self) -> Tensor | None:
        l1 = self.config.l1
        if l1.weight == 0:
            return None
        own = self.backbone.own_factors(whole_A=l1.of is L1Of.delta)
        # offloaded factors too
        factors = [(A.to(self.device), B.to(self.device), scaling) for A, B, scaling in own]
        return l1.weight * l1_penalty(factors, of=l1.of.value)
