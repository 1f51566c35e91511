"""PEFT LoRA folders as low-rank deltas, read from their files without torch or peft."""

import math
import re
from collections.abc import Collection, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from paft.delta.rows import FLOATS, Array
from paft.delta.stored import StoredFactors
from paft.files.jsonfile import read_object
from paft.files.safetensors import Stored, read_header

PREFIX = "base_model.model."

# fmt: off
NOT_PLAIN = (
    "use_dora", "use_qalora", "use_bdlora", "fan_in_fan_out", "lora_bias", "modules_to_save",
    "target_parameters", "trainable_token_indices", "layer_replication", "alora_invocation_tokens",
    "arrow_config", "kasa_config", "monteclora_config",
)
# fmt: on
"""PEFT settings under which a weight is no longer the base's plus `scaling * B @ A`."""
MOVES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Values of `init_lora_weights` that rewrite the base weights the factors belong to."""


def read_adapters(
    folders: Mapping[str, Path], *, same: Collection[str] = ()
) -> dict[str, dict[str, StoredFactors]]:
    """`read_adapter` of every branch. Raises `ValueError` unless all share base, tokenizer and template.

    Their paft.json says so; where an adapter has none, base_model_name_or_path and revision are compared. Keys in
    `same` are not: the caller knows that they mean one thing.
    """
    if not folders:
        raise ValueError("adapters must hold at least one adapter folder, got none")
    read = {branch: read_adapter(folder) for branch, folder in folders.items()}
    for a, b in combinations(folders.values(), 2):
        first, second = _origins(a, b)
        for key in sorted((first.keys() | second.keys()) - set(same)):
            if first.get(key) != second.get(key):
                raise ValueError(
                    f"{a} and {b} cannot be merged: {key:.100} is {first.get(key)!r:.100} in the first "
                    f"and {second.get(key)!r:.100} in the second; train both from the same one"
                )
    return read


def _origins(a: Path, b: Path) -> list[dict[str, str | None]]:
    if all((folder / "paft.json").is_file() for folder in (a, b)):
        return [read_object(folder / "paft.json") for folder in (a, b)]
    configs = [read_object(folder / "adapter_config.json") for folder in (a, b)]
    return [{key: c.get(key) for key in ("base_model_name_or_path", "revision")} for c in configs]


def read_adapter(folder: Path) -> dict[str, StoredFactors]:
    """The delta of every adapted tensor, under its name in the base checkpoint, of a PEFT LoRA folder.

    Honours rank_pattern, alpha_pattern and use_rslora. Every value is read once and checked, none is kept. Raises
    `ValueError` naming the folder for anything but plain LoRA on linear weights: no `base + scaling * B @ A` in the
    base's tensors would be the trained model.
    """
    config = _read_config(folder)
    path, factors = _find_factors(folder)
    modules = sorted(key.removesuffix(".lora_A.weight") for key in factors if key.endswith(".lora_A.weight"))
    known = {f"{module}.lora_{factor}.weight" for module in modules for factor in "AB"}
    if unknown := sorted(factors.keys() ^ known):
        raise ValueError(
            f"{folder} holds more or less than pairs of lora_A and lora_B weights: {', '.join(unknown[:3]):.300}; "
            "train with bias='none', no modules_to_save, and linear target_modules"
        )
    if not modules:
        raise ValueError(f"{path} holds no lora_A weight")
    adapter = {}
    for module in modules:
        name = module.removeprefix(PREFIX)
        A, B = (factors[f"{module}.lora_{factor}.weight"] for factor in "AB")
        adapter[f"{name}.weight"] = StoredFactors(path, A, B, _scaling(folder, name, config, A, B))
    _refuse_unfinished(folder, adapter)
    return adapter


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise ValueError(f"{folder} is not a PEFT adapter folder: it holds no adapter_config.json")
    config = read_object(path)
    if config.get("peft_type") != "LORA":
        raise ValueError(
            f"{path} has peft_type={config.get('peft_type')!r:.60}; only LORA adapters can be merged"
        )
    wrong = {key: config[key] for key in NOT_PLAIN if config.get(key)}
    if config.get("bias", "none") != "none":
        wrong["bias"] = config["bias"]
    if str(config.get("init_lora_weights")).lower().startswith(MOVES_BASE):
        wrong["init_lora_weights"] = config["init_lora_weights"]
    if wrong:
        settings = ", ".join(f"{key}={value!r:.60}" for key, value in wrong.items())
        raise ValueError(f"{path} is not a plain LoRA on linear weights ({settings}); train it without these")
    return config


def _find_factors(folder: Path) -> tuple[Path, dict[str, Stored]]:
    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        pickled = " (adapter_model.bin is a pickle and is not read)" * (folder / "adapter_model.bin").exists()
        raise ValueError(
            f"{folder} holds no adapter_model.safetensors{pickled}; save with safe_serialization=True"
        )
    try:
        return path, read_header(path)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _scaling(folder: Path, name: str, config: dict[str, Any], A: Stored, B: Stored) -> float:
    rank = _by_pattern(folder, config, "rank_pattern", name, config.get("r"))
    alpha = _by_pattern(folder, config, "alpha_pattern", name, config.get("lora_alpha"))
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float) or not abs(alpha) < 1e38:
        raise ValueError(
            f"{folder}/adapter_config.json gives {name:.100} rank {rank!r:.60} and lora_alpha {alpha!r:.60}; a rank is "
            "a whole number of at least 1, an alpha a finite number. Correct the file or save the adapter again"
        )
    linear = len(A.shape) == len(B.shape) == 2 and A.shape[0] == B.shape[1] == rank
    if not linear or A.dtype not in FLOATS or B.dtype not in FLOATS:
        raise ValueError(
            f"{folder}: {name:.100} has lora_A {list(A.shape)} of {A.dtype} and lora_B {list(B.shape)} of {B.dtype}; "
            f"a linear layer of rank {rank} (adapter_config.json) has [{rank}, in] and [out, {rank}] of floats"
        )
    return float(alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)


def _by_pattern(folder: Path, config: dict[str, Any], setting: str, name: str, default: Any) -> Any:
    """The value of the first key that is a module's name or its end; keys are regular expressions, as in peft."""
    patterns = config.get(setting) or {}
    try:
        found = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name))
        return next(found, default)
    except (AttributeError, re.error, RecursionError, OverflowError) as error:
        raise ValueError(
            f"{folder}/adapter_config.json has {setting}={patterns!r:.100}; it must map regular expressions for module "
            f"names to numbers ({error})"
        ) from error


def _refuse_unfinished(folder: Path, adapter: Mapping[str, StoredFactors]) -> None:
    for name, stored in adapter.items():
        factors = stored.load()
        # with NaN in it the bound is NaN, which is not below anything
        bound = (
            max(1.0, abs(factors.scaling)) * factors.A.shape[0] * _largest(factors.A) * _largest(factors.B)
        )
        if not bound < float(np.finfo(np.float32).max):
            raise ValueError(
                f"{folder}: the factors of {name:.100} hold NaN or infinite values, or their product would; "
                "the training diverged: train again, with a lower learning rate"
            )


def _largest(factor: Array) -> float:
    """The largest magnitude, NaN where there is one."""
    return max(float(factor.max(initial=0.0)), -float(factor.min(initial=0.0)))
