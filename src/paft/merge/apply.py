"""From adapter folders to a merged model folder: each tensor is merged, measured and written in one pass."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from paft.config import DType, MergeConfig, Norm
from paft.config.checks import identifies
from paft.delta.adapter import read_adapters
from paft.delta.rows import Array, Bits, blocks_of, decode
from paft.files.safetensors import read_checkpoint
from paft.merge.method import Adapters, Method, Plan, TensorMerge, gram_of_deltas
from paft.merge.methods import METHODS, plain_sum
from paft.merge.norm import common_norm, deltas_of, merged_norm, scaled, with_norm
from paft.merge.slerp import Gram
from paft.merge.sparsify import Mask
from paft.merge.stream import Weight, rewrite

single_threaded_blas = partial(threadpool_limits, 1, user_api="blas")
"""Several threads form small products: a BLAS with threads of its own takes twenty times as long."""


def merge_adapters(
    base: Path, adapters: Mapping[str, Path], method: MergeConfig, out: Path, *, same: Collection[str] = ()
) -> dict[str, Any]:
    """Write `base` plus the merged delta of two PEFT adapter folders to `out`, and report on it as JSON data.

    `adapters` maps branch names to folders in the order of the method's weights; ranks and target modules may
    differ, a module that one branch does not adapt has a zero delta there. The report holds "method",
    "variant" (every option in one line), "weights", "layers" (cosine and sign conflict of the two deltas, for
    slerp also whether it was linear), their means ("cosine", "sign_conflict", "linear_share"), "rounded_back"
    (share of the elements with a non-zero merged delta whose stored value is the base's), "changed_tensors"
    and "delta_l2"; with `method.norm` also the common "norm".

    Raises `ValueError` for adapters trained for different bases, tokenizers or templates, as far as these are not
    known to be the `same` (see `read_adapters`), and for those that `read_adapter` or `rewrite` refuse.
    """
    name = method_name(method)
    assert isinstance(method, Method)
    if len(adapters) != 2:
        raise ValueError(
            f"{name} merges two adapters, got {len(adapters)}: {', '.join(adapters) or 'none'}; "
            "use apply_adapters for a plain sum"
        )
    read: Adapters = read_adapters(adapters, base, same=same)
    labels: dict[str, Any] = {"method": name, "variant": variant(method), "weights": method.shares}
    with single_threaded_blas():
        if method.norm is not Norm.own:
            labels["norm"] = common_norm(read)
        if method.norm is Norm.branches:
            read = with_norm(read, labels["norm"])
        plan = method.plan(read)
        if method.norm is Norm.merged:
            plan = scaled(plan, labels["norm"] / merged_norm(base, read, plan))
        return labels | _write(base, read, plan, out, method.dtype)


def apply_adapters(
    base: Path,
    adapters: Mapping[str, Path],
    out: Path,
    dtype: DType | None = None,
    *,
    same: Collection[str] = (),
) -> dict[str, Any]:
    """Write `base` plus the plain sum of all deltas to `out`: the single-branch and sequential baselines.

    Takes one adapter or more; reports and refuses as `merge_adapters` does, cosines only where there are two.
    """
    read = read_adapters(adapters, base, same=same)
    weights = [1.0] * len(read)
    labels = {"method": "apply", "variant": f"apply weights={_text(weights)}", "weights": weights}
    with single_threaded_blas():
        return labels | _write(base, read, plain_sum(len(weights)), out, dtype)


def method_name(method: MergeConfig) -> str:
    """The method's name in the configuration. Raises `ValueError` for a type that is no method."""
    if METHODS.get(method.name) is not type(method):
        raise ValueError(f"merge must be one of {', '.join(METHODS)}, got {type(method).__name__}")
    return method.name


def variant(method: MergeConfig) -> str:
    """One line that states the method and every option which can change its result."""
    options = {
        f.name: getattr(method, f.name) for f in fields(method) if identifies(f, getattr(method, f.name))
    }
    stated = (f"{name}={_text(value)}" for name, value in options.items() if value is not None)
    return " ".join([method_name(method), *stated])


def _text(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(_text, value))
    if isinstance(value, float):
        return f"{value:.12g}"
    return str(value.value if isinstance(value, Enum) else value).lower()


def _write(base: Path, adapters: Adapters, plan: Plan, out: Path, dtype: DType | None) -> dict[str, Any]:
    names = list(dict.fromkeys(name for adapter in adapters.values() for name in adapter))
    stored = {name: tensor for file in read_checkpoint(base).values() for name, tensor in file.items()}
    counts: dict[str, _Counts] = {}

    def change(weight: Weight) -> Iterator[Bits]:
        deltas = deltas_of(adapters, weight)
        tensor = plan(weight.name, deltas, weight)
        gram = gram_of_deltas(*deltas) if len(deltas) == 2 else None
        count = counts[weight.name] = _Counts(math.prod(weight.shape), gram, tensor.linear)
        yield from _merged_rows(weight, tensor, count)

    rewrite(base, out, names, change, dtype=dtype)
    return _summary({name: counts[name] for name in stored if name in counts})


def _merged_rows(weight: Weight, tensor: TensorMerge, count: "_Counts") -> Iterator[Bits]:
    as_before = weight.dtype == weight.stored.dtype
    for rows, deltas in blocks_of(*tensor.deltas):
        before = weight.bits(rows)
        base = decode(before, weight.stored.dtype)
        merged = tensor.merge(rows, deltas, base)
        after = weight.encode(base + merged)
        count.add(deltas, merged, before == after if as_before else decode(after, weight.dtype) == base)
        yield after


@dataclass
class _Counts:
    """What is counted while the rows of one tensor pass by."""

    size: int
    gram: Gram | None
    linear: bool | None
    conflicts: int = 0
    moved: int = 0
    rounded_back: int = 0
    squares: float = 0.0

    def add(self, deltas: Sequence[Array], merged: Array, unchanged: Mask) -> None:
        if self.gram is not None:
            self.conflicts += _opposite(*deltas)
        wide = merged.reshape(-1).astype(np.float64)
        self.squares += float(wide @ wide)
        moved = merged != 0
        self.moved += int(np.count_nonzero(moved))
        self.rounded_back += int(np.count_nonzero(moved & unchanged))

    def row(self) -> dict[str, Any]:
        row: dict[str, Any] = {}
        if self.gram is not None:
            row = {"cosine": self.gram.cosine, "sign_conflict": self.conflicts / self.size}
        return row if self.linear is None else row | {"linear": self.linear}


def _opposite(a: Array, b: Array) -> int:
    """At how many positions both are non-zero with opposite signs."""
    return int(np.count_nonzero(((a > 0) & (b < 0)) | ((a < 0) & (b > 0))))


def _summary(counts: Mapping[str, _Counts]) -> dict[str, Any]:
    layers = {name: count.row() for name, count in counts.items()}
    rows = list(layers.values())
    means = {
        f"{key}_share" if key == "linear" else key: sum(row[key] for row in rows) / len(rows)
        for key in (rows[0] if rows else {})
    }
    moved = sum(count.moved for count in counts.values())
    return means | {
        "rounded_back": sum(count.rounded_back for count in counts.values()) / moved if moved else 0.0,
        "changed_tensors": len(layers),
        "delta_l2": math.sqrt(sum(count.squares for count in counts.values())),
        "layers": layers,
    }
