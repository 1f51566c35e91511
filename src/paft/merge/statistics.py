"""Merge methods that look at data: what was measured on each branch's own training rows, read tensor by tensor."""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from paft.config import Space, Statistic, require
from paft.delta.delta import Delta
from paft.delta.rows import Rows
from paft.delta.stored import StoredTensor
from paft.files.jsonfile import read_object
from paft.files.safetensors import read_header
from paft.merge.method import Adapters, Method, Plan, TensorMerge, WeightedMerge
from paft.merge.sparsify import everything

INPUT = "_statistics"
"""How a merge's inputs of this kind end, as `sft_statistics`."""
FILE, ALIKE = "statistics.safetensors", "alike.json"
"""Tensors by the name of the weight; weights that have the statistics of another, as layers of one input."""
Measured = Mapping[str, Rows]
"""Name of a weight -> what was measured of it on one branch's rows."""


@dataclass
class DataMerge(WeightedMerge):
    """A method that needs statistics of each branch's own rows: it says `plan_by`.

    A tensor that one branch alone adapts keeps that branch's delta, times `scale`.
    """

    needs: ClassVar[Statistic]
    """Which; a stage of its own measures it, once for all merges that ask."""
    spaces: ClassVar[tuple[Space, ...]] = (Space.delta,)

    num_rows: int = 256
    """Training rows of each branch that are looked at."""
    seed: int = 42
    """Of the draw of these rows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_rows > 0, "merge.num_rows", self.num_rows, "positive")

    measured: ClassVar[Any] = ()
    """A sequence of `Measured`, of each branch in the order of its adapters; `informed` gives a copy of its own."""

    def informed(self, inputs: Mapping[str, Path]) -> Method:
        """A copy that holds what the `statistics` stages wrote."""
        return self.holding([read_statistics(path) for name, path in inputs.items() if name.endswith(INPUT)])

    def holding(self, measured: Sequence[Measured]) -> Self:
        """A copy with these statistics."""
        informed = copy(self)
        informed.measured = measured  # type: ignore[misc]
        return informed

    def plan(self, adapters: Adapters) -> Plan:
        if not self.measured:
            raise ValueError(
                f"merge={self.name} looks at training rows of each branch, which adapter folders alone do not bring; "
                "merge with train.py, whose statistics stage measures them"
            )
        return self.plan_by(adapters, self.measured)

    def plan_by(self, adapters: Adapters, measured: Sequence[Measured]) -> Plan:
        """How each tensor is merged; `measured` of each branch in the order of `adapters`."""
        raise NotImplementedError(f"{type(self).__name__} must say how it merges by statistics")


def read_statistics(folder: Path) -> Measured:
    """What a `statistics` stage wrote to `folder`; tensors stay in their file until their rows are asked for."""
    file = folder / FILE
    stored = {name: StoredTensor(file, tensor) for name, tensor in read_header(file).items()}
    alike = {name: stored[str(other)] for name, other in read_object(folder / ALIKE).items()}
    return stored | alike


def lone(deltas: Sequence[Delta], scale: float) -> TensorMerge:
    """The sum of deltas of which one alone is not zero."""
    return TensorMerge(deltas, lambda d, _: np.float32(scale) * np.sum(d, axis=0), [everything] * len(deltas))
