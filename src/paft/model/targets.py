"""Which layers of a base get an adapter, as peft is told."""

from peft import LoraConfig as PeftLoraConfig
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from paft.config import ALL_LINEAR, LINEAR_MODULES, LoraConfig

LINEAR = (nn.Linear, Conv1D)
"""Conv1D is GPT-2's linear layer: its weight is [in, out]."""


def resolved_targets(
    base: PreTrainedModel, targets: list[str], *, at: str = "lora.target_modules"
) -> list[str]:
    """The names of the layers that get an adapter, as peft takes them.

    `all-linear`, and the default where the base has not all of its names, as no fused or differently named layers
    have: every linear layer but the output head. Raises `ValueError` for any other name that matches no linear layer:
    a misspelt one would silently train less.
    """
    known = {_last(name) for name, module in base.named_modules() if isinstance(module, LINEAR)}
    unknown = [name for name in targets if name not in known]
    if targets == [ALL_LINEAR] or (unknown and targets == LINEAR_MODULES):
        return all_linear(base)
    if unknown:
        raise ValueError(
            f"{at} {unknown} match no linear layer of {base.config.model_type}; "
            f"it has {', '.join(sorted(known)) or 'none'}, or all-linear for every one but the output head"
        )
    return targets


def all_linear(base: PreTrainedModel) -> list[str]:
    """Every linear layer but the output head, as peft's `all-linear`: by last name where that means linear layers only.

    Raises `ValueError` for a base without any.
    """
    head = base.get_output_embeddings()
    chosen = {name for name, m in base.named_modules() if isinstance(m, LINEAR) and m is not head}
    if not chosen:
        raise ValueError(
            f"{base.config.model_type} has no linear layer but its output head: no adapter can be on it"
        )
    others = {_last(name) for name, _ in base.named_modules() if name not in chosen}
    return sorted({name if _last(name) in others else _last(name) for name in chosen})


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def in_peft(lora: LoraConfig, base: PreTrainedModel) -> PeftLoraConfig:
    """peft's settings of an adapter on this base."""
    return PeftLoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=resolved_targets(base, lora.target_modules),
        use_rslora=lora.rslora,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in base.modules()),
        task_type="CAUSAL_LM",
    )
