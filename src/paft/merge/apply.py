"""From adapters and models to a merged model folder: each tensor is merged, measured and written in one pass."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from paft.config import DType, MergeConfig, Norm
from paft.config.checks import identifies
from paft.delta.rows import Bits, decode
from paft.merge.branches import read_branches
from paft.merge.counts import Counts, summary
from paft.merge.method import Method, TensorMerge
from paft.merge.methods import METHODS, plain_sum
from paft.merge.norm import common_norm, merged_norm, scaled, with_norm
from paft.merge.planned import PlannedMerge, merged_blocks
from paft.merge.prune import pruned
from paft.merge.space import plan_of
from paft.merge.stream import Weight, rewrite

single_threaded_blas = partial(threadpool_limits, 1, user_api="blas")
"""Several threads form small products: a BLAS with threads of its own takes twenty times as long."""


def merge_adapters(
    base: Path, adapters: Mapping[str, Path], method: MergeConfig, out: Path, *, same: Collection[str] = ()
) -> dict[str, Any]:
    """Write `base` plus the merged delta of two branches to `out`: `plan_merge`, then `write_model`."""
    return write_model(plan_merge(base, adapters, method, same=same), out)


def apply_adapters(
    base: Path,
    adapters: Mapping[str, Path],
    out: Path,
    dtype: DType | None = None,
    *,
    same: Collection[str] = (),
) -> dict[str, Any]:
    """Write `base` plus the plain sum of all deltas to `out`: `plan_sum`, then `write_model`."""
    return write_model(plan_sum(base, adapters, dtype, same=same), out)


def plan_merge(
    base: Path,
    adapters: Mapping[str, Path],
    method: MergeConfig,
    *,
    same: Collection[str] = (),
    inputs: Mapping[str, Path] | None = None,
) -> PlannedMerge:
    """The merge of two branches into `base`, by branch name in the order of the method's weights.

    `inputs` hold the folders of what was measured for a method that looks at data.

    A folder is a PEFT adapter or a whole fine-tuned model; what one branch does not change has a zero delta there.
    Raises `ValueError` for adapters trained for different bases, tokenizers or templates, as far as these are not known
    to be the `same` (see `read_adapters`), and for those that `read_branches` or the method's own `refuse` refuse.
    """
    name = method_name(method)
    assert isinstance(method, Method)
    if len(adapters) != 2:
        raise ValueError(
            f"{name} merges two adapters, got {len(adapters)}: {', '.join(adapters) or 'none'}; "
            "use apply_adapters for a plain sum"
        )
    read = read_branches(base, adapters, same=same)
    labels: dict[str, Any] = {"method": name, "variant": variant(method), "weights": method.shares}
    with single_threaded_blas():
        read = pruned(read, method)
        if method.norm is not Norm.own:
            labels["norm"] = common_norm(read, method.norm)
        if method.norm in (Norm.branches, Norm.preference):
            read = with_norm(read, labels["norm"])
        method.refuse(read)
        plan = plan_of(method.informed(inputs or {}), read)
        if method.norm is Norm.merged:
            plan = scaled(plan, labels["norm"] / merged_norm(base, read, plan))
    return PlannedMerge(base, read, plan, method.dtype, labels, measures_overlap=method.overlap)


def plan_sum(
    base: Path,
    adapters: Mapping[str, Path],
    dtype: DType | None = None,
    *,
    same: Collection[str] = (),
    expo: float = 0.0,
    weights: Sequence[float] = (),
    sparse: MergeConfig | None = None,
) -> PlannedMerge:
    """The sum of one adapter's delta or more, each times 1 or its own of the `weights`: the single-branch and
    sequential baselines, and soups.

    `expo` is added to the weight 1 of the preference delta, `sparse` says what is pruned first. Refuses as `plan_merge`
    does.
    """
    read = read_branches(base, adapters, same=same)
    if sparse is not None:
        with single_threaded_blas():
            read = pruned(read, sparse)
    weights = list(weights) or [1.0 + (expo if branch == "preference" else 0.0) for branch in read]
    labels = {"method": "apply", "variant": f"apply weights={_text(weights)}", "weights": weights}
    return PlannedMerge(base, read, plain_sum(weights), dtype, labels)


def write_model(merge: PlannedMerge, out: Path) -> dict[str, Any]:
    """Write the merged model to `out`, and report on it as JSON data.

    The report holds "method", "variant" (every option in one line), "weights", "layers" (cosine and sign conflict of
    two deltas, with `method.overlap` that too, for slerp whether it was linear), their means ("cosine",
    "sign_conflict", "overlap", "linear_share"), "shared" (share of the elements that both deltas change),
    "conflict_of_shared" (share of these where they have opposite signs), "rounded_back" (share of the elements with a
    non-zero merged delta whose stored value is the base's), "changed_tensors" and "delta_l2"; with `method.norm` also
    the common "norm". Raises `ValueError` as `rewrite` does.
    """
    counts: dict[str, Counts] = {}

    def change(weight: Weight) -> Iterator[Bits]:
        tensor, counts[weight.name] = merge.tensor(weight)
        yield from _merged_rows(weight, tensor, counts[weight.name])

    with single_threaded_blas():
        rewrite(merge.base, out, merge.names, change, dtype=merge.dtype)
    return {**merge.labels, **summary({name: counts[name] for name in merge.names})}


def _merged_rows(weight: Weight, tensor: TensorMerge, count: Counts) -> Iterator[Bits]:
    as_before = weight.dtype == weight.stored.dtype
    for block in merged_blocks(tensor, weight):
        after = weight.encode(block.base + block.merged)
        unchanged = block.before == after if as_before else decode(after, weight.dtype) == block.base
        count.add(block.deltas, block.merged, unchanged)
        yield after


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
