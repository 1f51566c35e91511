"""Deltas (task vectors) of LoRA adapters: reading them, and how sparse and how alike they are.

A delta is what an adapter adds to one weight, `scaling * B @ A` of shape [out, in]. Everything here is
float32 from the factors: differences of saved bfloat16 checkpoints show the rounding of the file, not the
training.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

PREFIX = "base_model.model."
SMALL = 1e-5
"""The absolute threshold of the PAFT paper's sparsity."""
SAMPLE = 2**16
"""Most elements a Gini coefficient is taken over."""
CHUNK = 2**15
"""Elements converted to float64 at a time: they stay in a core's cache, and torch starts no threads."""

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


@dataclass(frozen=True)
class LowRank:
    """The delta of one linear layer as its factors A [rank, in] and B [out, rank]."""

    A: Tensor
    B: Tensor
    scaling: float

    @property
    def shape(self) -> torch.Size:
        """[out, in]"""
        return torch.Size((self.B.shape[0], self.A.shape[1]))

    def dense(self) -> Tensor:
        """Float32 [out, in]."""
        return (self.B.float() @ self.A.float()) * self.scaling


def read_adapter(folder: Path) -> dict[str, LowRank]:
    """The delta of every adapted tensor, under its name in the base checkpoint, of a PEFT LoRA folder.

    Honours rank_pattern, alpha_pattern and use_rslora. Raises `ValueError` naming the folder for anything but
    plain LoRA on linear weights: no `base + scaling * B @ A` in the base's tensors would be the trained
    model.
    """
    config = _read_config(folder)
    factors = _read_factors(folder)
    modules = sorted(key.removesuffix(".lora_A.weight") for key in factors if key.endswith(".lora_A.weight"))
    known = {f"{module}.lora_{factor}.weight" for module in modules for factor in "AB"}
    if unknown := sorted(factors.keys() ^ known):
        raise ValueError(
            f"{folder} holds more or less than pairs of lora_A and lora_B weights: {', '.join(unknown[:3])}; "
            "train with bias='none', no modules_to_save, and linear target_modules"
        )
    if not modules:
        raise ValueError(f"{folder}/adapter_model.safetensors holds no lora_A weight")
    return {
        module.removeprefix(PREFIX) + ".weight": _low_rank(
            folder, module, config, factors[f"{module}.lora_A.weight"], factors[f"{module}.lora_B.weight"]
        )
        for module in modules
    }


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise ValueError(f"{folder} is not a PEFT adapter folder: it holds no adapter_config.json")
    config: dict[str, Any] = json.loads(path.read_text())
    if config.get("peft_type") != "LORA":
        raise ValueError(
            f"{path} has peft_type={config.get('peft_type')!r}; only LORA adapters can be merged"
        )
    wrong = {key: config[key] for key in NOT_PLAIN if config.get(key)}
    if config.get("bias", "none") != "none":
        wrong["bias"] = config["bias"]
    if str(config.get("init_lora_weights")).lower().startswith(MOVES_BASE):
        wrong["init_lora_weights"] = config["init_lora_weights"]
    if wrong:
        settings = ", ".join(f"{key}={value!r}" for key, value in wrong.items())
        raise ValueError(f"{path} is not a plain LoRA on linear weights ({settings}); train it without these")
    return config


def _read_factors(folder: Path) -> dict[str, Tensor]:
    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        pickled = " (adapter_model.bin is a pickle and is not read)" * (folder / "adapter_model.bin").exists()
        raise ValueError(
            f"{folder} holds no adapter_model.safetensors{pickled}; save with safe_serialization=True"
        )
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _low_rank(folder: Path, module: str, config: dict[str, Any], A: Tensor, B: Tensor) -> LowRank:
    name = module.removeprefix(PREFIX)
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    rank = ranks.get(get_pattern_key(list(ranks), name), config["r"])
    alpha = alphas.get(get_pattern_key(list(alphas), name), config["lora_alpha"])
    if A.ndim != 2 or B.ndim != 2 or A.shape[0] != rank or B.shape[1] != rank:
        raise ValueError(
            f"{folder}: {name} has lora_A {list(A.shape)} and lora_B {list(B.shape)}; "
            f"a linear layer of rank {rank} (adapter_config.json) has [{rank}, in] and [out, {rank}]"
        )
    if not (A.isfinite().all() and B.isfinite().all()):
        raise ValueError(
            f"{folder}: the factors of {name} hold NaN or infinite values; the training diverged"
        )
    return LowRank(A, B, alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)


def layer_statistics(delta: Tensor | LowRank) -> dict[str, float]:
    """How sparse one delta is, by absolute and by scale-free measures.

    - `share_below_1e-5` of |.| (the paper's), `share_zero` (exact), `share_below_tenth_rms`;
    - `l1`, `l2`, `rms`, summed in float64;
    - `hoyer` = (sqrt(n) - l1/l2) / (sqrt(n) - 1), 0 for equal magnitudes, 1 for one non-zero (Hoyer 2004);
    - `gini` of |.|; above 2**16 elements of an evenly strided sample of at most that many;
    - `effective_rank` = exp(entropy of the normalised singular values) (Roy & Vetterli 2007), exact from a QR
      of the factors where there are factors.

    An all-zero delta is the sparsest there is: every share, `hoyer` and `gini` are 1, `effective_rank` is 0.
    """
    dense = delta.dense() if isinstance(delta, LowRank) else delta.float()
    magnitude = dense.abs().flatten()
    n = magnitude.numel()
    l1, l2 = magnitude.sum(dtype=torch.float64).item(), math.sqrt(inner(dense, dense))
    rms = l2 / math.sqrt(n)
    return {
        "numel": n,
        "share_below_1e-5": _share(magnitude < SMALL),
        "share_zero": _share(magnitude == 0),
        "share_below_tenth_rms": _share(magnitude < 0.1 * rms) if rms else 1.0,
        "l1": l1,
        "l2": l2,
        "rms": rms,
        "hoyer": (math.sqrt(n) - l1 / l2) / (math.sqrt(n) - 1) if l2 else 1.0,
        "gini": _gini(magnitude),
        "effective_rank": _effective_rank(delta),
    }


def adapter_statistics(adapter: Mapping[str, LowRank]) -> dict[str, dict[str, Any]]:
    """`layer_statistics` of each layer, their mean over layers, and with every element counting once.

    Returns {"layers": {name: statistics}, "mean_over_layers": {...}, "over_elements": {...}}; one dense delta
    exists at a time.
    """
    layers = {name: layer_statistics(delta) for name, delta in adapter.items()}
    rows = list(layers.values())
    numel, l1 = (sum(row[key] for row in rows) for key in ("numel", "l1"))
    l2 = math.hypot(*(row["l2"] for row in rows))
    shares = [key for key in rows[0] if key.startswith("share_")]
    over_elements = {key: sum(row["numel"] * row[key] for row in rows) / numel for key in shares}
    over_elements |= {"numel": numel, "l1": l1, "l2": l2, "rms": l2 / math.sqrt(numel)}
    return {"layers": layers, "mean_over_layers": mean_of(rows), "over_elements": over_elements}


def _share(mask: Tensor) -> float:
    return mask.count_nonzero().item() / mask.numel()


def _gini(magnitude: Tensor) -> float:
    # an odd stride meets every column of a matrix whose width is a power of two
    stride = -(-magnitude.numel() // SAMPLE) | 1
    ascending = magnitude[::stride].sort().values.double()
    n, total = ascending.numel(), ascending.sum().item()
    if total == 0:
        return 1.0
    ranks = torch.arange(1, n + 1, dtype=torch.float64)
    return 2 * torch.dot(ranks, ascending).item() / (n * total) - (n + 1) / n


def _effective_rank(delta: Tensor | LowRank) -> float:
    core = delta.double() if isinstance(delta, Tensor) else _core(delta)
    singular = torch.linalg.svdvals(core.reshape(core.shape[0], -1))
    if singular.sum() == 0:
        return 0.0
    p = singular / singular.sum()
    return math.exp(torch.special.entr(p).sum().item())


def _core(delta: LowRank) -> Tensor:
    """A [rank, rank] matrix with the singular values of B @ A: Q_B (R_B R_A^T) Q_A^T."""
    R_B = torch.linalg.qr(delta.B.double()).R
    R_A = torch.linalg.qr(delta.A.double().T).R
    return R_B @ R_A.T


def compare(a: Mapping[str, LowRank], b: Mapping[str, LowRank]) -> dict[str, Any]:
    """`agreement` of two adapters: {"layers": {name: {"cosine", "sign_conflict"}}, "mean": {...}}.

    Over the layers of either; a layer that only one adapts has a zero delta in the other, hence 0 and 0.
    """
    layers = {}
    for name in [*a, *(name for name in b if name not in a)]:
        layers[name] = {"cosine": 0.0, "sign_conflict": 0.0}
        if name in a and name in b:
            layers[name] = agreement(a[name].dense(), b[name].dense())
    return {"layers": layers, "mean": mean_of(list(layers.values()))}


def agreement(a: Tensor, b: Tensor) -> dict[str, float]:
    """Cosine of two deltas, and the share of all positions where both are non-zero with opposite signs."""
    return {"cosine": cosine(a, b), "sign_conflict": _share(a.sign() * b.sign() < 0)}


def inner(a: Tensor, b: Tensor) -> float:
    """Sum of products in float64, a bounded piece at a time."""
    pieces = zip(a.reshape(-1).split(CHUNK), b.reshape(-1).split(CHUNK), strict=True)
    return sum(torch.dot(x.double(), y.double()).item() for x, y in pieces)


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine over all elements in float64, in [-1, 1]; 0 where a norm is 0.

    Norms count as at least 1e-7, as in mergekit's nuslerp. A float32 cosine of four million elements has come
    out at 1.0002.
    """
    norms = [max(math.sqrt(inner(x, x)), 1e-7) for x in (a, b)]
    return min(1.0, max(-1.0, inner(a, b) / (norms[0] * norms[1])))


def mean_of(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean of every key over rows of the same keys."""
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0] if key != "numel"}
