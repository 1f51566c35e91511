"""Deltas brought to one norm: `merge.norm`. Norms are Frobenius's, over all tensors of an adapter together."""

import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from paft.config import Norm
from paft.delta.delta import Delta, StoredDelta, inner, zero_delta
from paft.delta.rows import Rows, blocks_of
from paft.files.safetensors import read_checkpoint
from paft.merge.method import Adapters, Plan, TensorMerge
from paft.merge.stream import THREADS, Weight


def adapter_norm(adapter: Mapping[str, StoredDelta]) -> float:
    """The norm of an adapter's delta, of factors without computing it, in float64."""
    return math.sqrt(sum(inner(delta, delta) for delta in (s.load() for s in adapter.values())))


def common_norm(adapters: Adapters, norm: Norm = Norm.branches) -> float:
    """The preference branch's norm for `Norm.preference`, else the geometric mean of the branches' norms.

    Raises `ValueError` naming a branch whose delta is zero.
    """
    norms = {branch: adapter_norm(adapter) for branch, adapter in adapters.items()}
    for branch, size in norms.items():
        if size == 0:
            raise ValueError(
                f"merge.norm brings deltas to one norm, and the {branch} delta is zero; "
                "lower lambda or set merge.norm=own"
            )
    if norm is Norm.preference:
        return norms["preference"]
    return math.exp(sum(map(math.log, norms.values())) / len(norms))


def with_norm(adapters: Adapters, norm: float) -> Adapters:
    """Each branch's delta times one factor, so that its norm is `norm`; one that has it is left as it is."""
    factors = {branch: norm / adapter_norm(adapter) for branch, adapter in adapters.items()}
    return {
        branch: adapter
        if factors[branch] == 1
        else {name: stored.scaled(factors[branch]) for name, stored in adapter.items()}
        for branch, adapter in adapters.items()
    }


def scaled(plan: Plan, factor: float) -> Plan:
    """The same merge with its result times `factor`."""

    def scaled_plan(name: str, deltas: list[Delta], base: Rows) -> TensorMerge:
        merge = plan(name, deltas, base)
        ends = merge.coefficients
        return replace(
            merge,
            combine=lambda kept, rows: np.float32(factor) * merge.combine(kept, rows),
            coefficients=None if ends is None else [factor * c for c in ends],
        )

    return scaled_plan  # type: ignore[return-value]


def merged_norm(base: Path, adapters: Adapters, plan: Plan) -> float:
    """The norm of the merged delta: one more pass over the tensors, which writes nothing."""
    with (
        ExitStack() as files,
        ThreadPoolExecutor(THREADS, initializer=partial(np.seterr, all="ignore")) as pool,
    ):
        weights = list(_weights(base, adapters, files))
        norm = math.sqrt(sum(pool.map(partial(_squares, adapters, plan), weights)))
    if norm == 0:
        raise ValueError(
            "merge.norm=merged: the merged delta is zero; raise merge.density or set merge.norm=own"
        )
    return norm


def _weights(base: Path, adapters: Adapters, files: ExitStack) -> Iterator[Weight]:
    names = {name for adapter in adapters.values() for name in adapter}
    for path, tensors in read_checkpoint(base).items():
        file = files.enter_context(path.open("rb"))
        yield from (Weight(name, stored, file) for name, stored in tensors.items() if name in names)


def _squares(adapters: Adapters, plan: Plan, weight: Weight) -> float:
    tensor = plan(weight.name, deltas_of(adapters, weight), weight)
    total = 0.0
    for rows, deltas in blocks_of(*tensor.deltas):
        merged = tensor.merge(rows, deltas, weight[rows]).reshape(-1).astype(np.float64)
        total += float(merged @ merged)
    return total


def deltas_of(adapters: Adapters, weight: Weight) -> list[Delta]:
    """Every branch's delta of a weight, zero where it does not adapt it."""
    held = [adapter.get(weight.name) for adapter in adapters.values()]
    return [zero_delta(weight.shape) if stored is None else stored.load() for stored in held]
