"""What is fine-tuned."""

import os
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Self

from omegaconf import MISSING

from paft.config.checks import Typed, require, require_pinned


class DType(str, Enum):
    """`float32` has 32 bits, `bfloat16` the first 16 of them."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Quantization(str, Enum):
    """`nf4`: 4-bit NormalFloat with double quantization (QLoRA), through bitsandbytes."""

    none = "none"
    nf4 = "nf4"


@dataclass
class ModelShape(Typed):
    """The sizes of a Llama-like transformer, under the names of its config.json."""

    hidden_size: int = MISSING
    """Numbers in a hidden state."""
    intermediate_size: int = MISSING
    """Numbers between the two halves of an MLP."""
    num_hidden_layers: int = MISSING
    """Decoder layers."""
    num_attention_heads: int = MISSING
    """Heads of queries."""
    num_key_value_heads: int = MISSING
    """Heads of keys and values, shared by those of queries."""
    head_dim: int = MISSING
    """Numbers in a head."""
    vocab_size: int = MISSING
    """Tokens of the embedding."""
    tie_word_embeddings: bool = False
    """Whether the output head is the embedding."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            require(isinstance(value, bool) or value > 0, f"model.shape.{name}", value, "positive")


@dataclass
class ModelConfig(Typed):
    """What every kind of base model shares."""

    name: str = MISSING
    """What keys know it by; tables show `title`."""
    dtype: DType = DType.bfloat16
    """Storage type of the frozen base and of merged models; LoRA factors are always float32."""
    attention: str = "auto"
    """transformers' `attn_implementation`; `auto` is sdpa with a faster backward pass on CPUs. One that does not give
    the base's own results is replaced by `eager`, which the log and a plan say."""
    quantization: Quantization = field(default=Quantization.none, metadata={"identity": "unless default"})
    """Of the frozen base while an adapter trains on it; adapters are merged into the base as it was released."""
    trust_remote_code: bool = False
    """Run Python code shipped in the model repository. Off unless you turn it on."""
    shape: ModelShape | None = field(default=None, metadata={"identity": False})
    """For a plan, where the base's own config.json is not on this disk."""

    @property
    def title(self) -> str:
        """What it is called wherever people read of it."""
        return self.name

    def as_released(self) -> Self:
        """The model that deltas are merged into and that is evaluated, however it was stored in training."""
        return replace(self, quantization=Quantization.none)


@dataclass
class TinyModel(ModelConfig):
    """A random Llama of a few thousand parameters with a byte tokenizer, made on the spot from `seed`."""

    seed: int = 0
    """Of the random weights."""
    hidden_size: int = 64
    """Numbers in a hidden state; an MLP has twice as many."""
    num_layers: int = 2
    """Decoder layers."""
    num_heads: int = 4
    """Heads of queries."""
    num_kv_heads: int = 2
    """Heads of keys and values."""

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_layers", "num_heads", "num_kv_heads"):
            require(getattr(self, name) > 0, f"model.{name}", getattr(self, name), "positive")
        width, heads, kv_heads = 2 * self.num_heads, self.num_heads, self.num_kv_heads
        require(
            self.hidden_size % width == 0, "model.hidden_size", self.hidden_size, f"a multiple of {width}"
        )
        require(heads % kv_heads == 0, "model.num_kv_heads", kv_heads, f"a divisor of num_heads={heads}")


@dataclass
class WheelModel(ModelConfig):
    """A GGUF file inside an installed Python package, converted once to safetensors in the cache."""

    package: str = MISSING
    """The Python package, as it is imported."""
    version: str = MISSING
    """The version of it that must be installed."""
    file: str = MISSING
    """The GGUF file in it, `<model>.<quantization>.gguf`."""

    @property
    def title(self) -> str:
        return gguf_title(self.file) or self.name


def gguf_title(file: str) -> str:
    """The model in a GGUF file, by the convention `<model>.<quantization>.gguf`; empty for another name."""
    model, _, quantization = file.removesuffix(".gguf").rpartition(".")
    return f"{model} ({quantization} de-quantised)" if model else ""


@dataclass
class HubModel(ModelConfig):
    """A model repository on the Hugging Face hub at a pinned commit."""

    repo: str = MISSING
    """The model's repository, as `mistralai/Mistral-7B-v0.1`."""
    revision: str = MISSING
    """Its commit, 40 hexadecimal digits: branches and tags move."""

    def __post_init__(self) -> None:
        require_pinned("model.revision", self.repo, self.revision)


@dataclass
class LocalModel(ModelConfig):
    """A folder in Hugging Face format with safetensors weights; its content, not its path, is its identity."""

    name: str = ""
    """Where it is not given, that of the folder."""
    path: str = field(default=MISSING, metadata={"identity": False})
    """The folder: config.json, *.safetensors and the tokenizer's files."""
    sha256: str = ""
    """Filled in from the folder's files when the graph is built."""

    def __post_init__(self) -> None:
        self.name = self.name or Path(os.path.abspath(self.path)).name
