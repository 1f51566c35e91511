"""Tokens per second, share of the machine's peak and peak memory, while a branch trains and over its whole run."""

import time
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from paft.config import HardwareConfig, ModelConfig
from paft.cost.flops_and_bytes import branch_flops, forward_flops
from paft.cost.shape import read_shape
from paft.cost.work import other_forwards, rows_work
from paft.device import computed_in
from paft.graph.stage import Stage
from paft.process.memory import peak_resident_bytes
from paft.proof.record import device_of
from paft.store.context import Context
from paft.training.batches import GlobalBatch

PEAK_SIZE, PEAK_SECONDS = 1024, 0.1
SHOWN = {
    "tokens_per_second": ("tokens/s", "{:.0f}"),
    "share_of_peak": ("of peak", "{:.0%}"),
    "useful_share_of_peak": ("useful", "{:.0%}"),
    "peak_memory_gb": ("memory", "{:.1f} GB"),
}
"""What is logged of a step -> its name and form in the progress bar."""


class Throughput(Callback):
    """Times every optimizer step and logs `train/tokens_per_second`, `train/share_of_peak`, `train/peak_memory_gb`.

    Tokens are real ones of all devices, never padding. The share is the FLOPs of one device's rows over what the device
    could do in that time; it is left out for a model of unknown shape. With gradient checkpointing it counts the second
    forward pass (hardware FLOPs utilization, HFU), and `train/useful_share_of_peak` does not (model FLOPs utilization,
    MFU, Chowdhery et al. 2022, arXiv:2204.02311, appendix B); without it they are one, and logged as one. Memory is the
    most of any step so far. Totals live in the checkpoint, so that a resumed run reports the whole of it. First among
    the callbacks, it does not count what the others do.
    """

    def __init__(self, stage: Stage, base: Path, context: Context) -> None:
        self.stage, self.running = stage, context.running
        self.shape = read_shape(base / "config.json")
        self.peak = peak_flops(self.running.hardware, stage.config.model)
        self.started = 0.0
        self.total = dict.fromkeys(
            ("tokens", "seconds", "flops", "validation_seconds", "validation_flops"), 0.0
        )
        self.recomputes = self.running.trainer.gradient_checkpointing is True  # `auto` is decided by now
        if self.recomputes:
            self.total["useful_flops"] = 0.0
        self.memory = 0.0
        """Bytes: the most of any step."""
        self.last: dict[str, float] = {}

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        forget_peak_memory(self.running.hardware)  # an earlier stage's, or that of one inside of this
        self.started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = {
            "tokens": float(sum(sum(row.lengths) for row in batch.rows) * trainer.world_size),
            "seconds": time.perf_counter() - self.started,
            "flops": self.flops(batch, recompute=self.recomputes),
        }
        if self.recomputes:
            step["useful_flops"] = self.flops(batch, recompute=False)
        self._add(step)
        self.last = self._rates(step)
        pl_module.log_dict({f"train/{name}": v for name, v in self.last.items()}, rank_zero_only=True)

    def on_validation_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.started = time.perf_counter()

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        seconds = time.perf_counter() - self.started
        self._add({"validation_seconds": seconds, "validation_flops": self.validation_flops(batch)})

    def _add(self, spent: dict[str, float]) -> None:
        self.total |= {name: self.total[name] + value for name, value in spent.items()}

    def flops(self, batch: GlobalBatch[Any], *, recompute: bool) -> float:
        """Of the rows this device has of an optimizer step; 0 where the model's shape is unknown."""
        if self.shape is None:
            return 0.0
        branch = self.stage.config.branch
        return branch_flops(
            self.shape,
            branch,
            rows_work(batch.rows, branch),
            steps=1,
            forwards=other_forwards(branch, self.stage.inputs),
            recompute=recompute,
        )

    def validation_flops(self, batch: GlobalBatch[Any]) -> float:
        """The same of held-out rows, which no reference stage has seen."""
        if self.shape is None:
            return 0.0
        branch = self.stage.config.branch
        passes = 1 + other_forwards(branch, ())
        return passes * forward_flops(self.shape, rows_work(batch.rows, branch))

    def _rates(self, spent: dict[str, float]) -> dict[str, float]:
        rates = {"tokens_per_second": spent["tokens"] / spent["seconds"]}
        if self.shape is not None:
            rates["share_of_peak"] = spent["flops"] / spent["seconds"] / self.peak
            if self.recomputes:
                rates["useful_share_of_peak"] = spent["useful_flops"] / spent["seconds"] / self.peak
        self.memory = max(self.memory, peak_memory(self.running.hardware))
        return rates | {"peak_memory_gb": self.memory / 1e9}

    def shown(self) -> dict[str, str]:
        """The last step in words, for a progress bar."""
        return {SHOWN[name][0]: SHOWN[name][1].format(value) for name, value in self.last.items()}

    def summary(self) -> dict[str, Any]:
        """For stage.json: averages over all steps, what they were made of, and where; FLOPs are of one device."""
        trainer = self.running.trainer
        hardware, dtype = self.running.hardware, self.stage.config.model.dtype.value
        where = {"hardware": hardware.name, "devices": trainer.world_size}
        where |= {"computed_in": computed_in(dtype, device_of(trainer))}
        spent = {f"train_{name}" if name == "seconds" else name: value for name, value in self.total.items()}
        return self._rates(self.total) | spent | {"peak_tflops": self.peak / 1e12} | where

    def state_dict(self) -> dict[str, Any]:
        return dict(self.total)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.total |= state_dict


def peak_memory(hardware: HardwareConfig) -> float:
    """Bytes: the most this GPU had allocated since `forget_peak_memory`, or the most this process, its earlier stages
    included, has held."""
    if hardware.accelerator == "gpu":
        return float(torch.cuda.max_memory_allocated())
    return float(peak_resident_bytes())


def forget_peak_memory(hardware: HardwareConfig) -> None:
    """Of a GPU; the operating system forgets no peak of a process."""
    if hardware.accelerator == "gpu":
        torch.cuda.reset_peak_memory_stats()


def peak_flops(hardware: HardwareConfig, model: ModelConfig) -> float:
    """FLOP/s of one device: the data sheet's, or what this CPU shows in products of the type that it computes in."""
    if hardware.accelerator != "cpu":
        return 1e12 * hardware.peak_tflops
    return measured_peak(getattr(torch, computed_in(model.dtype.value, hardware.accelerator)))


@cache
def measured_peak(dtype: torch.dtype) -> float:
    """The best of the matrix products that fit into a tenth of a second, after one to warm up."""
    a, b = (torch.ones(PEAK_SIZE, PEAK_SIZE, dtype=dtype) for _ in range(2))
    torch.mm(a, b)
    best, end = float("inf"), time.perf_counter() + PEAK_SECONDS
    while (started := time.perf_counter()) < end:
        torch.mm(a, b)
        best = min(best, time.perf_counter() - started)
    return 2 * PEAK_SIZE**3 / best
