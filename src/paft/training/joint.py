"""Joint training, what parallel training is compared with: one adapter, SFT rows and pairs in the same steps.

It is the preference branch's training with SFT rows beside its pairs: L = L_preference + weight * L_SFT. Both losses
are means over their own global batch, so each is what it is alone; each row is seen as often as in its own branch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from paft.chat.tokens import Encoded
from paft.forward.batches import sft_tensors
from paft.graph.configs import BranchStage, JointRows
from paft.losses import mean_nll
from paft.training.batches import GlobalBatch, StepLoader, num_steps
from paft.training.preference import PreferenceModule


class JointModule(PreferenceModule):
    """Trains by the objective of its pairs and by the likelihood of its SFT rows, which is logged as `sft_nll`."""

    def __init__(self, base: Any, stage: BranchStage, *args: Any, **options: Any) -> None:
        super().__init__(base, stage, *args, **options)
        assert stage.joint is not None
        self.weight = stage.joint.weight

    def micro_loss(self, rows: list[Any], batch: GlobalBatch[Any]) -> tuple[Tensor, dict[str, Tensor]]:
        if not isinstance(rows[0], Encoded):
            return super().micro_loss(rows, batch)
        tensors = sft_tensors(rows, self.pad_id, self.device)
        nll = mean_nll(self.backbone(*tensors), batch.num_targets)
        return self.weight * nll, {"sft_nll": nll}

    def _passes(self, batch: GlobalBatch[Any]) -> list[tuple[list[Any], float]]:
        """Micro-batches of SFT rows, then of pairs: none holds both."""
        kinds = [[r for r in batch.rows if isinstance(r, Encoded) is texts] for texts in (True, False)]
        cut = super()._passes
        return [part for rows in kinds if rows for part in cut(replace(batch, rows=rows))]


class JointLoader:
    """The batches of two loaders in the steps of the longer one; those of the other are spread evenly over them."""

    def __init__(self, texts: StepLoader[Any], pairs: StepLoader[Any]) -> None:
        self.texts, self.pairs = texts, pairs
        self.steps = max(texts.steps, pairs.steps)
        self.start = 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[GlobalBatch[Any]]:
        for step in range(self.start, self.steps):
            self.start = step + 1
            yield joined(step, *(self._at(loader, step) for loader in (self.texts, self.pairs)))
        self.start = 0

    def _at(self, loader: StepLoader[Any], step: int) -> GlobalBatch[Any] | None:
        """The loader's own step that begins in this one, if there is one."""
        own = -(-step * loader.steps // self.steps)  # the first that is not before it
        return loader.at(own) if own < loader.steps and own * self.steps // loader.steps == step else None

    def row_ids(self, step: int) -> list[int]:
        """Of the pairs, of the last of their steps."""
        return self.pairs.row_ids(min(step * self.pairs.steps // self.steps, self.pairs.steps - 1))

    def state_dict(self) -> dict[str, Any]:
        return {"start": self.start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.start = state["start"]


def joined(step: int, texts: GlobalBatch[Any] | None, pairs: GlobalBatch[Any] | None) -> GlobalBatch[Any]:
    """One step's rows of both kinds; each kind's totals are its own."""
    if texts is None or pairs is None:
        only = texts or pairs
        assert only is not None
        return replace(only, step=step)
    places = [*texts.places, *(texts.num_rows + place for place in pairs.places)]
    rows = [*texts.rows, *pairs.rows]
    return replace(pairs, step=step, rows=rows, places=places, num_targets=texts.num_targets)


def joint_steps(rows: Sequence[Any], joint: JointRows) -> int:
    """Steps that the SFT rows take by themselves."""
    return num_steps(
        len(rows),
        global_batch_size=joint.global_batch_size,
        epochs=joint.epochs,
        max_steps=joint.max_steps,
    )
