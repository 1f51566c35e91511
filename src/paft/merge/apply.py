"""From adapter folders to a merged model folder: each tensor is merged, measured and written in one pass."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from paft.config import (
    SCHEMAS,
    DareLinear,
    DareTies,
    Linear,
    MergeConfig,
    Scope,
    Slerp,
    SlerpSpace,
    SparseMerge,
    TaskArithmetic,
    Ties,
    WeightedMerge,
)
from paft.delta import LowRank, agreement, inner, mean_of, read_adapter
from paft.merge.methods import along, dare_linear, dare_ties, delta_arc, full_arc, linear, task_arithmetic, ties
from paft.merge.sparsify import magnitude_threshold, tensor_generator, trim
from paft.merge.stream import read_checkpoint, rewrite

Adapters = Mapping[str, Mapping[str, LowRank]]
"""Branch name -> its adapter."""


class Merged(NamedTuple):
    delta: Tensor
    linear: bool | None = None
    """Whether slerp was a straight line here; None for the other methods."""


Merge = Callable[[str, Tensor, list[Tensor]], Merged]
"""(tensor name, base weight, one delta per branch), all float32 -> what to add to the base."""


def merge_adapters(
    base: Path, adapters: Mapping[str, Path], method: MergeConfig, out: Path
) -> dict[str, Any]:
    """Write `base` plus the merged delta of two PEFT adapter folders to `out`, and report on it as JSON data.

    `adapters` maps branch names to folders in the order of the method's weights; ranks and target modules may
    differ, a module that one branch does not adapt has a zero delta there. The report holds "method", "variant"
    (every option in one line), "weights", "layers" (cosine and sign conflict of the two deltas, and for slerp
    whether it was linear), their means, "rounded_back" (share of the elements with a non-zero merged delta whose
    stored value is the base's), "changed_tensors" and "delta_l2". Raises `ValueError` for adapters that were
    trained for another base, tokenizer or template than each other, and for those `read_adapter` refuses.
    """
    if len(adapters) != 2:
        raise ValueError(
            f"{method_name(method)} merges two adapters, got {len(adapters)}: {', '.join(adapters)}; "
            "use apply_adapters for a plain sum"
        )
    read = read_adapters(adapters)
    weights = [1 - method.t, method.t] if isinstance(method, Slerp) else _weighted(method).weights
    labels = {"method": method_name(method), "variant": variant(method), "weights": list(weights)}
    return labels | _write(base, read, _merge(method, read), out)


def apply_adapters(base: Path, adapters: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Write `base` plus the plain sum of all deltas to `out`: the single-branch and sequential baselines.

    Takes any number of adapters and reports as `merge_adapters` does.
    """
    read = read_adapters(adapters)
    weights = [1.0] * len(read)
    labels = {"method": "apply", "variant": f"apply weights={_text(weights)}", "weights": weights}
    return labels | _write(base, read, lambda _, __, deltas: Merged(task_arithmetic(deltas, weights)), out)


def method_name(method: MergeConfig) -> str:
    """The method's name in the configuration. Raises `ValueError` for a type that is no method."""
    names = {kind: name for name, kind in SCHEMAS.items() if issubclass(kind, MergeConfig)}
    if type(method) not in names:
        raise ValueError(f"merge must be one of {', '.join(names.values())}, got {type(method).__name__}")
    return names[type(method)]


def variant(method: MergeConfig) -> str:
    """One line that states the method and every option which can change its result."""
    options = [f.name for f in fields(method) if f.metadata.get("identity", True)]
    stated = {name: getattr(method, name) for name in options if getattr(method, name) is not None}
    return " ".join([method_name(method), *(f"{name}={_text(value)}" for name, value in stated.items())])


def _text(value: object) -> str:
    match value:
        case Enum():
            return str(value.value)
        case list():
            return ",".join(map(_text, value))
        case float():
            return f"{value:g}"
    return str(value).lower()


# --- which method ------------------------------------------------------------------------------------


def tensor_merge(method: MergeConfig, adapters: Adapters) -> Merge:
    """The configured method as a function of one tensor; each method gets its own options and no others."""
    match method:
        case Linear(weights=weights, scale=scale, normalize=normalize):
            return lambda _, __, deltas: Merged(linear(deltas, weights, normalize=normalize, scale=scale))
        case TaskArithmetic(weights=weights, scale=scale):
            return lambda _, __, deltas: Merged(task_arithmetic(deltas, weights, scale=scale))
        case Slerp(t=t, space=SlerpSpace.delta):
            return lambda _, __, deltas: _along(delta_arc(deltas, t), deltas, None)
        case Slerp(t=t, space=SlerpSpace.full):
            return lambda _, base, deltas: _along(full_arc(base, deltas, t), deltas, base)
        case Ties():
            return _ties(method, adapters)
        case DareLinear():  # and DareTies, which adds an election
            return _dare(method, list(adapters))
    raise ValueError(f"no merge is defined for {method_name(method)}")


def _along(arc: Arc, deltas: list[Tensor], base: Tensor | None) -> Merged:
    return Merged(along(arc, deltas, base), arc.linear)


def _ties(method: Ties, adapters: Adapters) -> Merge:
    options = {"election": method.election, "elect_on": method.elect_on, "normalize": method.normalize}
    
