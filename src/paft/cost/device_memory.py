"""What a device has, what a training holds of it, and whether it computes its activations twice to hold less."""

import os

from paft.config import BranchConfig, HardwareConfig, ModelConfig, ModelShape, Running
from paft.cost.flops_and_bytes import Batch, item_bytes, kind_of, training_memory, weight_bytes
from paft.device import forms_on


def memory_limit(hardware: HardwareConfig) -> float:
    """Bytes of one device."""
    if hardware.memory_gb is not None:
        return 1e9 * hardware.memory_gb
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def largest_micro_batch(running: Running, branch: BranchConfig, longest: float, *, pairs: bool) -> Batch:
    """No micro-batch of rows whose longest sequence has so many tokens is larger; a pair is a row of two sequences."""
    trainer, row = running.trainer, longest * (2 if pairs else 1)
    rows = min(trainer.micro_batch_size, -(-branch.global_batch_size // trainer.world_size))
    return Batch(max(min(rows * row, trainer.micro_batch_tokens), row), longest)


def training_holds(
    running: Running,
    model: ModelConfig,
    branch: BranchConfig,
    shape: ModelShape,
    batch: Batch,
    *,
    recompute: bool,
) -> float:
    """Bytes on one device at the end of a forward pass, with what its allocator holds beyond them."""
    kind = kind_of(running.hardware)
    memory = training_memory(
        shape,
        None if branch.is_full else branch.lora,
        batch,
        item_bytes=item_bytes(model, running.hardware),
        weight_bytes=weight_bytes(model, running.hardware),
        shards=running.num_shards,
        recompute=recompute,
        stored_scores=kind == "cpu" and model.attention == "auto",
        head_block=forms_on(kind).head_block,
    )
    return sum(memory.values()) + running.hardware.fragmentation * memory["activations"]


def recomputes(
    running: Running,
    model: ModelConfig,
    branch: BranchConfig,
    shape: ModelShape | None,
    batch: Batch,
    *,
    limit: float,
) -> bool:
    """What `trainer.gradient_checkpointing` comes to on a device of `limit` bytes.

    `auto` is true where the activations, kept, would not fit, and for a model of unknown shape.
    """
    asked = running.trainer.gradient_checkpointing
    if isinstance(asked, bool):
        return asked
    if shape is None:
        return True
    held = training_holds(running, model, branch, shape, batch, recompute=False)
    return held + 1e9 * running.hardware.runtime_gb > limit
