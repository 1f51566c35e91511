"""A callback that writes down what one rank sees and holds: its rows, its bytes, what is gathered to save."""

import hashlib
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from paft.files.jsonfile import write_json
from paft.graph.stage import Stage
from paft.store.context import Context
from paft.training.batches import GlobalBatch
from paft.training.module import BranchModule


class Stopped(Exception):
    """Training was made to fail."""


class Probe(Callback):
    """Writes `rank<r>.json` into the stage's folder when training ends.

    After `stop_after` steps it fails. `memory` follows every tensor of a sharded module, and what saving gathers.
    """

    def __init__(self, stop_after: int | None = None, memory: bool = False) -> None:
        self.stop_after, self.memory = stop_after, memory
        self.seen: dict[str, Any] = {"rows": [], "attentions": 0}

    def bind(self, context: Context, stage: Stage, out: Path, fingerprints: dict[str, str]) -> None:
        self.out = out

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, BranchModule)
        for name, part in module.backbone.base.named_modules():
            if name.endswith("self_attn"):  # inside what recomputation repeats
                part.register_forward_pre_hook(self._count)
        if self.memory:
            (optimizer,) = trainer.optimizers
            self.tracker = FSDPMemTracker(module.backbone, optimizer)
            self.tracker.track_inputs(())

    def _count(self, *_: Any) -> None:
        self.seen["attentions"] += 1

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: GlobalBatch[Any], _: int
    ) -> None:
        names = [hashlib.sha256(repr(row).encode()).hexdigest()[:16] for row in batch.rows]
        self.seen["rows"].append(names)
        if self.memory:
            self.tracker.reset_mod_stats()  # it follows one forward pass at a time
            self.tracker.__enter__()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self.memory:
            self.tracker.__exit__(None, None, None)
        if trainer.global_step == self.stop_after:
            raise Stopped(f"after step {trainer.global_step}")

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, BranchModule)
        (optimizer,) = trainer.optimizers
        moments = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
        self.seen["held"] = {name: held_bytes(p) for name, p in module.named_parameters()}
        self.seen["moments"] = sum(held_bytes(value) for value in moments)
        if self.memory:
            peak = self.tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
            self.seen["peak"] = {str(kind).partition(".")[2]: size for kind, size in peak.items()}
            with Collectives() as checkpoint:
                trainer.save_checkpoint(self.out / "probe.ckpt")
            with Collectives() as adapter:
                module.backbone.save(self.out / "probe", {})
            self.seen["gathered"] = {"checkpoint": checkpoint.gathered, "adapter": adapter.gathered}
        write_json(self.out / f"rank{trainer.global_rank}.json", self.seen)


class Collectives(TorchDispatchMode):
    """Writes down what is sent between ranks: the kind of call and the bytes of its whole tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if "c10d" in str(func):
            sizes = [t.nbytes for t in tree_leaves((args, out)) if isinstance(t, Tensor)]
            kinds = [kind for kind in ("gather", "scatter") if kind in str(func)]
            self.calls += [(kind, max(sizes)) for kind in kinds]
        return out

    @property
    def gathered(self) -> int:
        return sum(size for kind, size in self.calls if kind == "gather")


def held_bytes(tensor: Tensor) -> int:
    """Memory of the part that is on this rank, padding included."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.untyped_storage().nbytes()
