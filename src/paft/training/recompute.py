"""`trainer.gradient_checkpointing=auto`, decided for one training and its device."""

from dataclasses import replace
from pathlib import Path

import torch

from paft.config import HardwareConfig
from paft.cost.device_memory import largest_micro_batch, memory_limit, recomputes
from paft.cost.shape import read_shape
from paft.files.jsonfile import read_object
from paft.graph.configs import BranchStage
from paft.graph.stage import Stage
from paft.store.context import Context


def decided(context: Context, stage: Stage[BranchStage], inputs: dict[str, Path], base: Path) -> Context:
    """The context with a yes or no in the place of `auto`, by the longest of the rows in `inputs`."""
    running, config = context.running, stage.config
    if isinstance(running.trainer.gradient_checkpointing, bool):
        return context
    longest = max(longest_sequence(inputs[name]) for name in ("data", "sft_data") if name in inputs)
    batch = largest_micro_batch(running, config.branch, longest, pairs=stage.name == "preference")
    found = recomputes(
        running,
        config.model,
        config.branch,
        read_shape(base / "config.json"),
        batch,
        limit=device_memory(running.hardware),
    )
    trainer = replace(running.trainer, gradient_checkpointing=found)
    return replace(context, running=replace(running, trainer=trainer))


def longest_sequence(data: Path) -> int:
    """Tokens of the longest sequence of a data stage's training rows."""
    return int(read_object(data / "stage.json")["metrics"]["train"]["longest"])


def device_memory(hardware: HardwareConfig) -> float:
    """Bytes that `hardware` has, or the GPU at hand if it has less."""
    limit = memory_limit(hardware)
    if hardware.accelerator == "gpu" and torch.cuda.is_available():
        limit = min(limit, torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
    return limit
