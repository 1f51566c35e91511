"""RegMean: the linear layer that answers each branch's inputs as that branch does."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paft.config import Normalize, Statistic, require
from paft.delta.delta import Delta, Dense, Factors, is_zero
from paft.delta.rows import Array, Rows
from paft.merge.combine import added
from paft.merge.method import Adapters, Plan, TensorMerge
from paft.merge.space import Wide, as_whole
from paft.merge.sparsify import everything
from paft.merge.statistics import DataMerge, Measured, lone


@dataclass
class RegMean(DataMerge, name="regmean", title="RegMean", source="Jin et al. 2023, arXiv:2212.09849"):
    """The least-squares fit to what each branch's layer makes of its own inputs.

    (sum_i w_i delta_i G_i) (sum_i w_i G_i)^-1, where G_i is the mean of x x^T over the inputs x of the layer in the
    branch's own model, on its own rows. What is no weight of a linear layer is averaged: sum_i w_i delta_i / sum_i w_i.
    """

    needs: ClassVar[Statistic] = Statistic.gram

    nondiagonal: float = 0.1
    """Factor on what is off the diagonal of G: 1 trusts the rows, 0 weighs each input dimension alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.nondiagonal <= 1, "merge.nondiagonal", self.nondiagonal, "in [0, 1]")

    def plan_by(self, adapters: Adapters, measured: Sequence[Measured]) -> Plan:
        def plan(name: str, deltas: Sequence[Delta], base: Rows) -> TensorMerge:
            grams = [gram[name] for gram in measured if name in gram]
            if len(grams) < len(deltas):
                alone = any(map(is_zero, deltas))
                return lone(deltas, self.scale) if alone else self._averaged(deltas)
            return as_whole(deltas, self._fitted(deltas, grams))

        return plan

    def _averaged(self, deltas: Sequence[Delta]) -> TensorMerge:
        keep = [everything] * len(deltas)
        return TensorMerge(deltas, lambda d, _: added(d, self.weights, Normalize.weights, self.scale), keep)

    def _shrunk(self, gram: Array) -> Wide:
        shrunk = gram.astype(np.float64)
        shrunk *= self.nondiagonal
        np.fill_diagonal(shrunk, np.diagonal(gram))
        return shrunk

    def _fitted(self, deltas: Sequence[Delta], grams: Sequence[Rows]) -> Delta:
        """Of low rank where the deltas are. One Gram matrix at a time is in memory beside their sum."""
        factors = [delta for delta in deltas if isinstance(delta, Factors)]
        low_rank = len(factors) == len(deltas)
        lefts: Sequence[Array | Delta] = [f.A for f in factors] if low_rank else deltas
        answers: list[Wide] = []
        total: Wide | None = None
        for weight, left, gram in zip(self.weights, lefts, grams, strict=True):
            weighted = self._shrunk(gram[:])
            weighted *= weight
            answers.append(left[:].astype(np.float64) @ weighted)
            total = weighted if total is None else np.add(total, weighted, out=total)
        assert total is not None
        if low_rank:
            right = times_inverse(np.concatenate(answers), total).astype(np.float32)
            return Factors(
                right, np.concatenate([np.float32(f.scaling) * f.B for f in factors], 1), self.scale
            )
        return Dense((self.scale * times_inverse(np.sum(answers, axis=0), total)).astype(np.float32))


def times_inverse(rows: Wide, gram: Wide) -> Wide:
    """`rows` gram^-1, of a Gram matrix brought to a unit diagonal first, in its place; a dimension that no input has
    counts as 1."""
    sizes = np.sqrt(np.diagonal(gram))
    sizes = np.where(sizes > 0, sizes, 1.0)
    gram /= sizes
    gram /= sizes[:, None]
    np.fill_diagonal(gram, 1.0)
    solved: Wide = np.linalg.solve(gram, (rows / sizes).T).T / sizes
    return solved
