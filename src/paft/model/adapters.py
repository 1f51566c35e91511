"""Adapters and the base they belong to: what is refused, what is added to weights, what identifies a base."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from paft.config import ModelConfig
from paft.delta.adapter import read_adapter
from paft.delta.base import find_name
from paft.delta.delta import StoredDelta
from paft.delta.statistics import dense, in_torch
from paft.files.fingerprint import text_digest
from paft.files.safetensors import read_checkpoint
from paft.graph.stage import canonical
from paft.model.base import stored_as


def refuse_unstored(weights: list[str], folder: Path, *, left_out: bool = True) -> None:
    """Every trained weight must be a tensor of the base's files: into another its delta could never be merged.

    Raises `ValueError` naming one that is not; it says how it can be `left_out`, if it can.
    """
    stored = {name for tensors in read_checkpoint(folder).values() for name in tensors}
    unstored = [name for name in weights if find_name(name, stored) is None]
    if unstored:
        instead = "Leave it out of lora.target_modules, or save" if left_out else "Save"
        raise ValueError(
            f"{unstored[0]} is not among the tensors of {folder}, so no adapter of it can be merged: it is tied to "
            f"another one, or the base was saved without its head. {instead} the whole model again with "
            "save_pretrained"
        )


def add_deltas(base: PreTrainedModel, adapters: list[Path], folder: Path) -> None:
    """Add the deltas in `adapters`, of LoRA or of full fine-tuning, to the weights of a base that was loaded from
    `folder`: in float32, cast once. Products of factors are made on the CPU, wherever the base is."""
    add_stored(base, [read_adapter(adapter, folder) for adapter in adapters])


@torch.no_grad()
def add_stored(base: PreTrainedModel, branches: Sequence[Mapping[str, StoredDelta]]) -> None:
    """The same of deltas that were described already, under the names of the base's files."""
    weights = dict(base.named_parameters())
    deltas: dict[str, list[StoredDelta]] = {}
    for branch in branches:
        for name, stored in branch.items():
            deltas.setdefault(find_name(name, weights) or name, []).append(stored)
    for name, parts in deltas.items():
        weight = weights[name]
        total = torch.stack([dense(in_torch(part.load())) for part in parts]).sum(0)
        whole = weight.float() + total.to(weight.device).view_as(weight)
        weight.copy_(whole.to(stored_as(base, weight)))


def load_adapter(base: PreTrainedModel, folder: Path) -> PeftModel:
    """`base` with a saved adapter on top, for inference."""
    return PeftModel.from_pretrained(base, str(folder))


def base_fingerprint(model: ModelConfig) -> str:
    """What identifies the base model in an adapter folder: its name and a hash of its configuration."""
    return f"{model.name}-{text_digest(json.dumps(canonical(model.as_released()), sort_keys=True))}"


def save_fingerprints(folder: Path, fingerprints: dict[str, str]) -> None:
    """Write paft.json: the base, tokenizer and template that a delta is for."""
    (folder / "paft.json").write_text(json.dumps(fingerprints, indent=1))
