"""The backend `vllm`: lm-eval's own class of vLLM, told what `paft.evaluate.lm` tells transformers.

vLLM makes its batches by itself, so `evaluate.batch_size` is not for it, and an evaluation that was cut short begins
its task anew. A text ends where the chat template ends a turn, and a chat gets no BOS that it was not trained with.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, GenerationConfig

from paft.chat.template import adds_bos
from paft.evaluate.backends import Scored
from paft.evaluate.lm import end_ids

if TYPE_CHECKING:
    from lm_eval.models.vllm_causallms import VLLM


def load(scored: Scored) -> "VLLM":
    """The model in vLLM. It takes most of a GPU's memory, so what this process keeps for torch goes back first."""
    told = arguments(scored, written(scored))
    from lm_eval.models.vllm_causallms import VLLM  # needs the package

    gc.collect()
    torch.cuda.empty_cache()
    with _only_this_gpu():
        return VLLM(**told)


@contextmanager
def _only_this_gpu() -> Iterator[None]:
    """vLLM's own process takes the first GPU that it sees: let that be the one of this process."""
    name = "CUDA_VISIBLE_DEVICES"
    before, number = os.environ.get(name), torch.cuda.current_device()
    seen = before.split(",") if before else [*map(str, range(torch.cuda.device_count()))]
    os.environ[name] = seen[number]
    try:
        yield
    finally:
        os.environ.pop(name)
        os.environ.update({name: before} if before is not None else {})


def written(scored: Scored) -> Path:
    """A folder that vLLM reads the tokenizer with its chat template from, and the ids that end a text."""
    folder = scored.work / "vllm"
    scored.tokenizer.save_pretrained(folder)
    try:
        settings = GenerationConfig.from_pretrained(scored.folder)
    except OSError:  # the folder has none: its config.json tells
        trusted = scored.model.trust_remote_code
        settings = GenerationConfig.from_model_config(
            AutoConfig.from_pretrained(scored.folder, trust_remote_code=trusted)
        )
    GenerationConfig(eos_token_id=end_ids(settings, scored.tokenizer)).save_pretrained(folder)
    return folder


def arguments(scored: Scored, folder: Path) -> dict[str, Any]:
    """What lm-eval's `VLLM` is made with; it hands `generation_config` on to vLLM's `LLM`. `folder` is `written`."""
    chats = scored.evaluate.apply_chat_template
    return {
        "pretrained": str(scored.folder),
        "tokenizer": str(folder),
        "generation_config": str(folder),
        "dtype": scored.model.dtype.value,
        "trust_remote_code": scored.model.trust_remote_code,
        # a chat is read as it was trained: with a BOS if the tokenizer adds one, with nothing else that it adds
        "add_bos_token": adds_bos(scored.tokenizer) if chats else None,
        "batch_size": "auto",
        "seed": scored.evaluate.seed,
    }
