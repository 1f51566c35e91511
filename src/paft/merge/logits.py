"""Logits of a few rows in float32: of a folder as transformers loads it, and of a merge that no file holds.

Loads torch. However a model is stored, each module's weights are widened to float32 while it runs, so that memory is
that of the stored model.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import Any

import psutil
import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from paft.cost.merges import ROOM
from paft.files.safetensors import SIZES, read_checkpoint
from paft.merge.apply import single_threaded_blas
from paft.merge.planned import PlannedMerge
from paft.merge.stream import Weight

ROWS, TOKENS = 4, 32
"""Random tokens that logits are of."""
TYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


def has_room(folder: Path) -> bool:
    """Whether memory has room for the model of a folder in float32."""
    stored = (tensor for tensors in read_checkpoint(folder).values() for tensor in tensors.values())
    elements = sum((tensor.end - tensor.begin) // SIZES[tensor.dtype] for tensor in stored)
    return 4 * elements < ROOM * psutil.virtual_memory().available


def load(folder: Path, dtype: torch.dtype | str, settings: Mapping[str, Any]) -> PreTrainedModel:
    """As anybody loads a folder; `dtype` may be `auto`."""
    disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True, **settings).eval()


def random_rows(model: PreTrainedModel) -> Tensor:
    """[ROWS, TOKENS] of the vocabulary, always the same."""
    embeddings: Any = model.get_input_embeddings()
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, int(embeddings.weight.shape[0]), (ROWS, TOKENS), generator=generator)


@torch.no_grad()
def logits_of(model: nn.Module, rows: Tensor) -> Tensor:
    """[ROWS, TOKENS, vocabulary] in float32."""
    with widened(model):
        logits: Tensor = model(input_ids=rows, use_cache=False).logits
    return logits.float()


@contextmanager
def widened(model: nn.Module) -> Iterator[None]:
    """Inside, the weights of a module that runs are float32, and as they were when it has run."""
    narrow: dict[nn.Module, list[tuple[nn.Parameter, Tensor]]] = {}

    def widen(module: nn.Module, *_: Any) -> None:
        narrow[module] = [(p, p.data) for p in module.parameters(recurse=False) if p.is_floating_point()]
        for parameter, data in narrow[module]:
            parameter.data = data.float()

    def put_back(module: nn.Module, *_: Any) -> None:
        for parameter, data in narrow.pop(module):
            parameter.data = data

    with ExitStack() as hooks:
        for module in model.modules():
            hooks.callback(module.register_forward_pre_hook(widen).remove)
            hooks.callback(module.register_forward_hook(put_back).remove)
        yield


def difference(a: Tensor, b: Tensor) -> float:
    """The largest, of logits of the same rows; infinite for other shapes."""
    return float((a - b).abs().max()) if a.shape == b.shape else float("inf")


# --- a merge without a folder ------------------------------------------------------------------------


@dataclass(frozen=True)
class MergedTensor:
    """A tensor of a merge, computed when transformers asks for `[...]`, as it asks those of a file."""

    merge: PlannedMerge
    weight: Weight
    rounded: bool
    """To its stored type, by torch."""

    def __getitem__(self, index: EllipsisType) -> Tensor:
        tensor = torch.from_numpy(self.merge.merged(self.weight))
        return tensor.to(TYPES[self.weight.dtype]) if self.rounded else tensor


def merged_model(
    merge: PlannedMerge,
    kind: type[PreTrainedModel],
    dtype: torch.dtype,
    settings: Mapping[str, Any],
    *,
    rounded: bool,
) -> PreTrainedModel:
    """The base with merged tensors in place of its own, each computed anew: what the merged folder is to hold."""
    config = AutoConfig.from_pretrained(merge.base, **settings)
    with ExitStack() as stack:
        changed = stack.enter_context(merge.weights())
        stack.enter_context(single_threaded_blas())
        tensors: dict[str, Any] = {}
        for path, held in read_checkpoint(merge.base).items():
            file = stack.enter_context(safe_open(path, framework="pt"))
            tensors |= {name: file.get_slice(name) for name in held if name not in changed}
        tensors |= {name: MergedTensor(merge, weight, rounded) for name, weight in changed.items()}
        return kind.from_pretrained(None, config=config, state_dict=tensors, dtype=dtype).eval()
