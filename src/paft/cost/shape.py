"""A model's shape, from its config.json or its own config. Loads no torch."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from paft.config import HubModel, LocalModel, ModelConfig, ModelShape
from paft.files.jsonfile import read_object

MIXTURE_KEYS = ("num_local_experts", "num_experts", "n_routed_experts")
"""In the config.json of models whose layers hold several experts: not the layers counted here."""


def shape_of(model: ModelConfig) -> ModelShape | None:
    """From the base's config.json where it is on this disk, else `model.shape`; None if neither is known."""
    match model:
        case LocalModel():
            return read_shape(Path(model.path) / "config.json") or model.shape
        case HubModel():
            from huggingface_hub.constants import HF_HUB_CACHE

            folder = Path(HF_HUB_CACHE) / f"models--{model.repo.replace('/', '--')}"
            return read_shape(folder / "snapshots" / model.revision / "config.json") or model.shape
    return model.shape


def read_shape(config_json: Path) -> ModelShape | None:
    """The shape of a Llama-like model from its config.json; None if there is none or it is of another kind."""
    try:
        return shape_in(read_object(config_json))
    except (OSError, ValueError):
        return None


def shape_in(data: Mapping[str, Any]) -> ModelShape | None:
    """The same from what is in such a file."""
    if any(key in data for key in MIXTURE_KEYS):
        return None
    try:
        heads = data["num_attention_heads"]
        defaults = {
            "num_key_value_heads": heads,
            "head_dim": data["hidden_size"] // heads,
            "tie_word_embeddings": False,
        }
        known = defaults | {k: v for k, v in data.items() if v is not None}
        return ModelShape(**{f.name: known[f.name] for f in fields(ModelShape)})
    except (ValueError, LookupError, TypeError, ArithmeticError):
        return None
