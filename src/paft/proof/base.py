"""A base loaded the way it was proved to be right, or proved now."""

import math
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from paft.config import ModelConfig
from paft.device import computed_in
from paft.files.safetensors import read_checkpoint
from paft.model.base import base_settings, store_as, without_dropout
from paft.model.paths import FastPaths, take
from paft.proof.search import Proof, prove


def load_base(
    folder: Path,
    config: ModelConfig,
    paths: FastPaths | None = None,
    *,
    device: str | torch.device = "cpu",
    used_on: str | None = None,
) -> PreTrainedModel:
    """The frozen base on the `device`, from safetensors files of its folder alone, in the type that its storage type
    is `paft.device.computed_in` on the kind of device that it is `used_on` (None: where it is loaded).

    It takes the fast `paths` that it was proved to take on that kind of device; without them it is proved now
    (`paft.proof`). Its own dropout is off for good. Raises `ValueError` for damaged files, files elsewhere, and what
    is no causal language model.
    """
    settings, device = base_settings(folder, config), torch.device(device)
    if paths is None:
        paths = prove_base(folder, config, device=str(device)).paths
    # tensor by tensor; the CPU is where they are read to by themselves
    straight: dict[str, Any] = {} if device.type == "cpu" else {"device_map": {"": device}}
    computed = computed_in(config.dtype.value, used_on or device.type)
    disable_progress_bar()  # loading is quick; transformers' bar is not worth a line per stage
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder,
            config=settings,
            dtype=getattr(torch, computed),
            attn_implementation=paths.attention,
            trust_remote_code=config.trust_remote_code,
            use_safetensors=True,
            **straight,
        )
    except ImportError as error:  # of an attention's package
        raise ValueError(
            f"{config.title} cannot be loaded with model.attention={config.attention}: {error}; "
            "install what it needs, or set model.attention=auto"
        ) from error
    without_dropout(model)
    store_as(model, getattr(torch, config.dtype.value))
    return take(model.requires_grad_(False).eval(), paths)


def prove_base(folder: Path, config: ModelConfig, *, device: str = "cpu") -> Proof:
    """Which fast paths give the results of the base in `folder`; see `paft.proof`."""
    settings = base_settings(folder, config)
    own = AutoConfig.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    tensors = (tensor for file in read_checkpoint(folder).values() for tensor in file.values())
    disable_progress_bar()
    return prove(
        folder,
        own,
        settings,
        config.attention,
        num_parameters=sum(math.prod(tensor.shape) for tensor in tensors),
        device=device,
        trust_remote_code=config.trust_remote_code,
    )
