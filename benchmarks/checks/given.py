"""What the checks of `gpu.py` share: the device, a random base of a known shape, rows, and a branch's module."""

import json
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor
from transformers import AutoModelForCausalLM, MistralConfig

from paft.command.choices import CONF
from paft.command.compose import register_schemas, to_config
from paft.config import DType, RunConfig, TinyModel
from paft.graph.configs import BranchStage
from paft.model.base import base_folder
from paft.proof.record import device_of, proved_paths
from paft.training.module import BranchModule
from paft.training.stage import MODULES

SHAPES: dict[str, dict[str, Any]] = {
    "mistral": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
    },
}
LAYERS = {"mistral": 32, "tiny": 2}
PARITY_LAYERS = 4
"""Of the checks that also run on the CPU in float32."""
TOKENS = {"mistral": 2048, "tiny": 128}
"""Of a training row."""


@dataclass(frozen=True)
class Given:
    """One run of a check: on `device`, with models of `shape`, files under `folder`."""

    device: str
    shape: str
    layers: int
    folder: Path

    @property
    def accelerator(self) -> str:
        return "gpu" if self.device == "cuda" else "cpu"

    @property
    def trainer(self) -> tuple[str, ...]:
        """Words of train.py that train on this device."""
        return (f"trainer={self.accelerator}", "trainer.progress_bar=false", "callbacks=none", "logger=csv")

    @cached_property
    def few_layers(self) -> int:
        return min(self.layers, PARITY_LAYERS)

    def base(self, layers: int) -> tuple[str, ...]:
        """Words of train.py for a random base of the shape, made where it is not there yet."""
        folder = self.folder / f"{self.shape}-{layers}"
        if not folder.is_dir():
            make_base(folder, self.shape, layers, self.device)
        return ("model=local", f"model.path={folder}", f"model.name={folder.name}")

    def row_file(self, branch: str, count: int, tokens: int) -> Path:
        """Random rows of about `tokens` tokens, a prompt of a quarter of them."""
        path, row = self.folder / f"{branch}-{count}-{tokens}.jsonl", ROWS[branch]
        path.write_text("\n".join(json.dumps(row(tokens, i)) for i in range(count)))
        return path

    def rows(self, branch: str, count: int, tokens: int) -> tuple[str, ...]:
        """Words of train.py for them."""
        path = self.row_file(branch, count, tokens)
        return ("data=jsonl", *(f"data.{b}.path={path}" for b in ROWS), *lengths(branch, tokens))

    def synchronize(self) -> None:
        """Wait for the device to finish."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, action: Callable[[], Any], repeats: int = 5) -> float:
        """The fastest of several runs, after one to warm up."""
        action()
        return min(self._timed(action) for _ in range(repeats))

    def _timed(self, action: Callable[[], Any]) -> float:
        self.synchronize()
        started = time.perf_counter()
        action()
        self.synchronize()
        return time.perf_counter() - started


def make_base(folder: Path, shape: str, layers: int, device: str) -> None:
    """A model of random weights drawn on the device, in bfloat16, with a tokenizer whose tokens are bytes."""
    config = MistralConfig(
        num_hidden_layers=layers, max_position_embeddings=32768, sliding_window=None, **SHAPES[shape]
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    for path in base_folder(TinyModel(name="tiny")).glob("*token*"):
        shutil.copy(path, folder)


def text(count: int, seed: int) -> str:
    """So many bytes of words."""
    letters = random.Random(seed)
    return "".join(letters.choices("etaoin shrdlu", k=count))


def sft_row(tokens: int, seed: int) -> dict[str, Any]:
    asked, answered = text(tokens // 4, 2 * seed), text(tokens - tokens // 4, 2 * seed + 1)
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]}


def pair_row(tokens: int, seed: int) -> dict[str, Any]:
    """Both answers together have what a text's one answer has."""
    answers = {
        name: text((tokens - tokens // 4) // 2, 3 * seed + i) for i, name in enumerate(("chosen", "rejected"))
    }
    return {"prompt": text(tokens // 4, 3 * seed + 2), **answers}


ROWS: dict[str, Callable[[int, int], dict[str, Any]]] = {"sft": sft_row, "preference": pair_row}


def lengths(branch: str, tokens: int) -> tuple[str, ...]:
    """Words of train.py that let rows of so many tokens in whole."""
    return (f"data.{branch}.max_length={4 * tokens}", f"data.{branch}.max_prompt_length={2 * tokens}")


def composed(words: Sequence[str]) -> RunConfig:
    """The typed config of these words of train.py."""
    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return to_config(compose("train", overrides=list(words)))


def loaded(words: Sequence[str], branch: str, dtype: DType) -> BranchModule:
    """A branch's module with its base and an adapter that has moved, on the CPU."""
    config = composed([*words, f"model.dtype={dtype.value}"])
    folder = base_folder(config.model)
    module = MODULES[branch](
        folder,
        BranchStage(config.model, getattr(config, branch), config.data.template, config.seed),
        config.trainer,
        num_steps=2,
        paths=proved_paths(folder, config.model, device_of(config.trainer)),
    )
    module.configure_model()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, B, _ in module.backbone.stored_factors():
            B.copy_(0.02 * torch.randn(B.shape, generator=generator))
    return module


def distance(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Frobenius norm of the difference over that of `wanted`, over all tensors together."""
    off = sum(float((found[n].cpu().double() - wanted[n].double()).square().sum()) for n in wanted)
    return float((off / sum(float(w.double().square().sum()) for w in wanted.values())) ** 0.5)
