"""From adapter folders to a merged model folder: each tensor is merged, measured and written in one pass."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from functools import partial
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
    TaskArithmetic,
    Ties,
    WeightedMerge,
)
from paft.delta import LowRank, agreement, inner, mean_of, read_adapter
from paft.merge.methods import (
    along,
    dare_linear,
    dare_ties,
    delta_arc,
    full_arc,
    linear,
    task_arithmetic,
    ties,
)
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
    differ, a module that one branch does not adapt has a zero delta there. The report holds "method",
    "variant" (every option in one line), "weights", "layers" (cosine and sign conflict of the two deltas, for
    slerp also whether it was linear), their means ("cosine", "sign_conflict", "linear_share"), "rounded_back"
    (share of the elements with a non-zero merged delta whose stored value is the base's), "changed_tensors"
    and "delta_l2".

    Raises `ValueError` for adapters trained for different bases, tokenizers or templates, and for those that
    `read_adapter` or `rewrite` refuse.
    """
    name = method_name(method)
    if len(adapters) != 2:
        raise ValueError(
            f"{name} merges two adapters, got {len(adapters)}: {', '.join(adapters) or 'none'}; "
            "use apply_adapters for a plain sum"
        )
    read = read_adapters(adapters)
    labels = {"method": name, "variant": variant(method), "weights": _weights(method)}
    return labels | _write(base, read, tensor_merge(method, read), out)


def apply_adapters(base: Path, adapters: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Write `base` plus the plain sum of all deltas to `out`: the single-branch and sequential baselines.

    Takes one adapter or more; reports and refuses as `merge_adapters` does, cosines only where there are two.
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
    options = {f.name: getattr(method, f.name) for f in fields(method) if f.metadata.get("identity", True)}
    stated = (f"{name}={_text(value)}" for name, value in options.items() if value is not None)
    return " ".join([method_name(method), *stated])


def _weights(method: MergeConfig) -> list[float]:
    if isinstance(method, Slerp):
        return [1 - method.t, method.t]
    return list(method.weights) if isinstance(method, WeightedMerge) else []


def _text(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(_text, value))
    if isinstance(value, float):
        return f"{value:.12g}"
    return str(value.value if isinstance(value, Enum) else value).lower()


def tensor_merge(method: MergeConfig, adapters: Adapters) -> Merge:
    """The configured method as a function of one tensor; each method gets its own options and no others."""
    match method:
        case Linear(weights=weights, scale=scale, normalize=normalize):
            return lambda _, __, d: Merged(linear(d, weights, normalize=normalize, scale=scale))
        case TaskArithmetic(weights=weights, scale=scale):
            return lambda _, __, d: Merged(task_arithmetic(d, weights, scale=scale))
        case Slerp(t=t, space=SlerpSpace.delta):
            return lambda _, __, d: Merged(along(arc := delta_arc(d, t), d), arc.linear)
        case Slerp(t=t, space=SlerpSpace.full):
            return lambda _, base, d: Merged(along(arc := full_arc(base, d, t), d, base), arc.linear)
        case Ties():
            return _ties(method, adapters)
        case DareTies(election=election, elect_on=elect_on):
            return _dare(method, adapters, partial(dare_ties, election=election, elect_on=elect_on))
        case DareLinear():
            return _dare(method, adapters, dare_linear)
    raise ValueError(f"no merge is written for {method_name(method)}")


def _ties(method: Ties, adapters: Adapters) -> Merge:
    election, elect_on = method.election, method.elect_on
    combine = partial(
        ties, scale=method.scale, election=election, elect_on=elect_on, normalize=method.normalize
    )
    if method.scope is Scope.tensor:
        return lambda _, __, deltas: Merged(combine(deltas, method.weights, density=method.densities))
    thresholds = [
        magnitude_threshold(partial(_dense, adapter), density)
        for adapter, density in zip(adapters.values(), method.densities, strict=True)
    ]

    def merge(_: str, __: Tensor, deltas: list[Tensor]) -> Merged:
        kept = [trim(delta, threshold) for delta, threshold in zip(deltas, thresholds, strict=True)]
        return Merged(combine(kept, method.weights, density=1.0))

    return merge


def _dense(adapter: Mapping[str, LowRank]) -> Iterator[Tensor]:
    return (delta.dense() for delta in adapter.values())


def _dare(method: DareLinear, adapters: Adapters, combine: Callable[..., Tensor]) -> Merge:
    def merge(name: str, _: Tensor, deltas: list[Tensor]) -> Merged:
        merged = combine(
            deltas,
            method.weights,
            density=method.densities,
            generators=[tensor_generator(method.seed, branch, name) for branch in adapters],
            rescale=method.rescale,
            normalize=method.normalize,
            scale=method.scale,
        )
        return Merged(merged)

    return merge


@dataclass
class _Report:
    """What is counted while tensors pass by."""

    layers: dict[str, dict[str, Any]] = field(default_factory=dict)
    moved: int = 0
    rounded_back: int = 0
    squares: float = 0.0

    def add(self, name: str, deltas: list[Tensor], merged: Merged, unchanged: Tensor) -> None:
        self.layers[name] = dict(agreement(*deltas)) if len(deltas) == 2 else {}
        if merged.linear is not None:
            self.layers[name]["linear"] = merged.linear
        moved = merged.delta != 0
        self.moved += int(moved.count_nonzero())
        self.rounded_back += int((moved & unchanged).count_nonzero())
        self.squares += inner(merged.delta, merged.delta)

    def summary(self) -> dict[str, Any]:
        rows = list(self.layers.values())
        means = {f"{key}_share" if key == "linear" else key: value for key, value in mean_of(rows).items()}
        return means | {
            "rounded_back": self.rounded_back / self.moved if self.moved else 0.0,
            "changed_tensors": len(self.layers),
            "delta_l2": math.sqrt(self.squares),
            "layers": self.layers,
        }


def _write(base: Path, adapters: Adapters, merge: Merge, out: Path) -> dict[str, Any]:
    stored = {name: tensor for file in read_checkpoint(base).values() for name, tensor in file.items()}
    names = list(dict.fromkeys(name for adapter in adapters.values() for name in adapter))
    report = _Report()

    def change(name: str, weight: Tensor) -> Tensor:
        deltas = [_delta(branch, adapters[branch].get(name), name, weight) for branch in adapters]
        merged = merge(name, weight, deltas)
        result = weight + merged.delta
        report.add(name, deltas, merged, result.to(stored[name].dtype) == weight)
        return result

    rewrite(base, out, names, change)
    return report.summary()


def _delta(branch: str, delta: LowRank | None, name: str, weight: Tensor) -> Tensor:
    if delta is None:
        return torch.zeros_like(weight)
    if delta.shape != weight.shape:
        raise ValueError(
            f"the {branch} adapter changes {name} as {list(delta.shape)}, the base has {list(weight.shape)}: "
            "was it trained on another model?"
        )
    return delta.dense()


def read_adapters(folders: Mapping[str, Path]) -> dict[str, dict[str, LowRank]]:
    """`read_adapter` of every branch. Raises `ValueError` unless all share base, tokenizer and template.

    Their paft.json says so; where an adapter has none, base_model_name_or_path and revision are compared.
    """
    if not folders:
        raise ValueError("adapters must hold at least one adapter folder, got none")
    read = {branch: read_adapter(folder) for branch, folder in folders.items()}
    for a, b in combinations(folders.values(), 2):
        first, second = _origins(a, b)
        for key in sorted(first.keys() | second.keys()):
            if first.get(key) != second.get(key):
                raise ValueError(
                    f"{a} and {b} cannot be merged: {key} is {first.get(key)!r} in the first and "
                    f"{second.get(key)!r} in the second; train both from the same one"
                )
    return read


def _origins(a: Path, b: Path) -> list[dict[str, str | None]]:
    if all((folder / "paft.json").is_file() for folder in (a, b)):
        return [json.loads((folder / "paft.json").read_text()) for folder in (a, b)]
    configs = [json.loads((folder / "adapter_config.json").read_text()) for folder in (a, b)]
    return [{key: c.get(key) for key in ("base_model_name_or_path", "revision")} for c in configs]
