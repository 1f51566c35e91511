"""Tiny whole models: a base, and what trainings of every weight, or of some, made of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "vocab_size": 64,
}


def save_base(
    folder: Path,
    kind: type[PreTrainedConfig] = LlamaConfig,
    *,
    dtype: torch.dtype = torch.float32,
    save: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(kind(**{**SIZES, "tie_word_embeddings": False} | settings))
    model.to(dtype).save_pretrained(folder, **save or {})
    return folder


def save_tuned(
    base: Path,
    folder: Path,
    seed: int,
    *,
    size: float = 0.01,
    dtype: torch.dtype | None = None,
    trained: Callable[[str], bool] = lambda name: True,
    **options: Any,
) -> Path:
    """The base with random changes of about `size` in the weights that are `trained`."""
    model = AutoModelForCausalLM.from_pretrained(base)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if trained(name):
                parameter += size * torch.randn(parameter.shape, generator=generator)
    model.to(dtype or model.dtype).save_pretrained(folder, **options)
    return folder


def save_adapter(base: Path, folder: Path, seed: int, **settings: Any) -> Path:
    """A LoRA adapter of the base by peft, with random factors."""
    lora = LoraConfig(**({"r": 4, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj"]} | settings))
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def weights_of(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
