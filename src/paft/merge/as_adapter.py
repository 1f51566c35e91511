"""A merged delta written as one PEFT folder: `merge.output=adapter`. Without torch.

Every layer has one rank, with zeros where it needs less, and the modules are named as in any LoRA folder, so peft and
vLLM (`--max-lora-rank` of at least the rank) load it as they load any other.
"""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from paft.chat.standalone import GENERATION, copy_files
from paft.delta.delta import Factors
from paft.delta.peft_keys import PREFIX
from paft.delta.rows import Array, row_blocks
from paft.delta.stored import StoredFactors
from paft.files.jsonfile import read_object, write_json
from paft.files.replacing import replacing
from paft.merge.apply import single_threaded_blas
from paft.merge.counts import Counts, summary
from paft.merge.low_rank import exact_factors, nearest_factors, padded
from paft.merge.planned import PlannedMerge, merged_blocks
from paft.merge.stream import THREADS, Weight, refuse_absent

EMBEDDINGS = ("embed_tokens", "embed_positions", "embed_in", "word_embeddings", "wte", "wpe")
"""Names of layers that are no matrix products, to which peft would add another kind of factors."""
CONV1D = ("gpt2", "openai-gpt")
"""Types of models that store the weights of their linear layers as [in, out]."""


def write_adapter(
    merge: PlannedMerge, out: Path, *, rank: int | None = None, base_name: str | None = None
) -> dict[str, Any]:
    """Write the merged delta to `out` as a PEFT folder beside the base's generation settings, and report on it as
    `write_model` does.

    In place of "rounded_back" the report has the "rank", and "adapter_error": the Frobenius norm of what the adapter
    lacks over that of the merged delta; so has each layer. `rank` is by default the sum of the ranks of the merged
    adapters, `base_name` what the folder calls its base. Raises `ValueError` for a delta that no LoRA adapter can
    hold: of a bias, a norm or an embedding, or of no stated rank.
    """
    if not merge.names:
        raise ValueError("the merge changes no tensor, so there is nothing for an adapter to hold")
    refuse_absent(merge.base, merge.names, merge.stored)
    refuse_not_linear(merge)
    limit = rank or _sum_of_ranks(merge)
    work = partial(_factors_of, merge, limit)
    with (
        single_threaded_blas(),
        merge.weights() as weights,
        ThreadPoolExecutor(THREADS, initializer=partial(np.seterr, all="ignore")) as pool,
    ):
        parts = dict(zip(weights, pool.map(work, weights.values()), strict=True))
    common = max(factors.A.shape[0] for factors, _, _ in parts.values())
    out.mkdir(parents=True, exist_ok=True)
    transposed = _stores_transposed(merge)
    tensors = dict(
        pair for name, (f, _, _) in parts.items() for pair in _named(name, padded(f, common), transposed)
    )
    with replacing(out / "adapter_model.safetensors") as file:
        file.write(save(tensors, {"format": "pt"}))
    write_json(out / "adapter_config.json", _config(merge, common, base_name, transposed))
    copy_files(merge.base, out, (GENERATION,))
    return {**merge.labels, **_report(parts, common)}


def refuse_not_linear(merge: PlannedMerge) -> None:
    """Raise `ValueError` naming a tensor that is no weight of a linear layer, as far as names and shapes tell."""
    for name in merge.names:
        module, _, kind = name.rpartition(".")
        if kind != "weight" or len(merge.stored[name].shape) != 2 or module.rpartition(".")[2] in EMBEDDINGS:
            raise ValueError(
                f"the merge changes {name} {list(merge.stored[name].shape)}, which a LoRA adapter of linear layers "
                "cannot hold; leave merge.output=adapter out to write a model"
            )


def _sum_of_ranks(merge: PlannedMerge) -> int:
    """The most of any tensor."""
    for branch, adapter in merge.adapters.items():
        if full := next((name for name, d in adapter.items() if not isinstance(d, StoredFactors)), None):
            raise ValueError(
                f"the {branch} delta of {full} is no product of LoRA factors, so the merged adapter has no rank by "
                "itself; give it one, as merge.rank=64"
            )
    held = [[a[n] for a in merge.adapters.values() if n in a] for n in merge.names]
    return max(sum(d.A.shape[0] for d in deltas if isinstance(d, StoredFactors)) for deltas in held)


def _factors_of(merge: PlannedMerge, limit: int, weight: Weight) -> tuple[Factors, Counts, float]:
    """The factors of one tensor, its counts, and the squares of what they lack."""
    tensor, counts = merge.tensor(weight)
    blocks = []
    for block in merged_blocks(tensor, weight):
        counts.add(block.deltas, block.merged)
        blocks.append(block.merged)
    delta = np.concatenate(blocks)
    if not np.isfinite(counts.squares):
        raise ValueError(f"the merged delta of {weight.name} is not finite; look at its deltas and scale")
    factors = exact_factors(tensor)
    if factors is None or factors.A.shape[0] > limit:
        factors = nearest_factors(delta, limit, weight.name)
    return factors, counts, _squares_between(delta, factors)


def _squares_between(delta: Array, factors: Factors) -> float:
    total = 0.0
    for rows in row_blocks(delta.shape):
        lacking = (delta[rows] - factors[rows]).reshape(-1).astype(np.float64)
        total += float(lacking @ lacking)
    return total


def _report(parts: dict[str, tuple[Factors, Counts, float]], rank: int) -> dict[str, Any]:
    report = summary({name: counts for name, (_, counts, _) in parts.items()})
    del report["rounded_back"]
    for name, (_, counts, lacking) in parts.items():
        report["layers"][name]["adapter_error"] = _relative(lacking, counts.squares)
    lacking = sum(squares for _, _, squares in parts.values())
    return report | {"rank": rank, "adapter_error": _relative(lacking, report["delta_l2"] ** 2)}


def _relative(lacking: float, squares: float) -> float:
    return math.sqrt(lacking / squares) if squares else 0.0


# --- as peft names it --------------------------------------------------------------------------------


def _named(name: str, factors: Factors, transposed: bool) -> Iterator[tuple[str, Array]]:
    module = f"{PREFIX}{name.removesuffix('.weight')}"
    A, B = (factors.B.T, factors.A.T) if transposed else (factors.A, factors.B)
    yield f"{module}.lora_A.weight", np.ascontiguousarray(A)
    yield f"{module}.lora_B.weight", np.ascontiguousarray(B)


def _config(merge: PlannedMerge, rank: int, base_name: str | None, transposed: bool) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name or str(merge.base),
        "r": rank,
        "lora_alpha": rank,
        "target_modules": _targets(merge),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "inference_mode": True,
    }


def _targets(merge: PlannedMerge) -> list[str]:
    """The last parts of the modules' names where they mean these modules alone, else the whole names."""
    changed = {name.removesuffix(".weight") for name in merge.names}
    kinds = {module.rpartition(".")[2] for module in changed}
    meant = {
        module
        for name, stored in merge.stored.items()
        if len(stored.shape) == 2 and (module := name.removesuffix(".weight")).rpartition(".")[2] in kinds
    }
    return sorted(kinds if meant == changed else changed)


def _stores_transposed(merge: PlannedMerge) -> bool:
    """Whether linear layers are stored as [in, out]: by the adapters that say so, else by the base's type."""
    config = merge.base / "config.json"
    known = config.is_file() and read_object(config).get("model_type") in CONV1D
    deltas = (delta for adapter in merge.adapters.values() for delta in adapter.values())
    return bool(known) or any(isinstance(d, StoredFactors) and d.transposed for d in deltas)
