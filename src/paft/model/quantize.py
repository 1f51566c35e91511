"""A frozen base in four bits under the adapter that trains on it (QLoRA, Dettmers et al. 2023).

NF4 weights in blocks of 64 with quantised block maxima, multiplied in the model's own type: the settings of
Zephyr's QLoRA recipes. Merging and evaluation never see it: they read the base as it was released.
"""

import importlib.util
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

PACKAGE, EXTRA = "bitsandbytes", "qlora"


def refuse_without_package() -> None:
    """Raises `ValueError` with the command that installs what a quantised base needs."""
    if importlib.util.find_spec(PACKAGE) is None:
        raise ValueError(
            f"model.quantization=nf4 needs the package {PACKAGE}, which is not installed; "
            f"run: pip install 'paft[{EXTRA}]', or set model.quantization=none"
        )


@torch.no_grad()
def quantize(base: PreTrainedModel, device: torch.device) -> None:
    """Put every linear layer but the output head in four bits, in place and on `device`."""
    refuse_without_package()
    head = base.get_output_embeddings()
    layers = [(n, m) for n, m in base.named_modules() if isinstance(m, nn.Linear) and m is not head]
    for name, layer in layers:
        base.set_submodule(name, _in_four_bits(layer, device))
    base.is_loaded_in_4bit = True  # type: ignore[assignment]  # peft asks


def _in_four_bits(layer: nn.Linear, device: torch.device) -> Any:
    from bitsandbytes.nn import Linear4bit, Params4bit

    quantized = Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=layer.weight.dtype,
        quant_type="nf4",
        device=torch.device("meta"),
    )
    quantized.weight = Params4bit(layer.weight, requires_grad=False, quant_type="nf4", module=quantized)
    quantized.bias = layer.bias
    # on CPUs bitsandbytes would repack the weights in a forward pass of validation, for good, into a form that has
    # no backward pass
    quantized.support_avx512bf16_for_cpu = False
    return quantized.to(device)
