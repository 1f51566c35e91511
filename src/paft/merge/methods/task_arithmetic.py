"""The weighted sum of the deltas."""

from collections.abc import Sequence
from dataclasses import dataclass

from paft.config import Normalize
from paft.delta.rows import Array
from paft.merge.combine import added, checked
from paft.merge.method import Plan, TensorMerge, WeightedMerge
from paft.merge.sparsify import everything


@dataclass
class TaskArithmetic(
    WeightedMerge,
    name="task_arithmetic",
    title="Task Arithmetic",
    source="Ilharco et al. 2023, arXiv:2212.04089",
):
    """Weighted sum of the deltas times `scale`."""

    @property
    def coefficients(self) -> list[float]:
        return [self.scale * weight for weight in self.weights]

    def merge_deltas(self, deltas: Sequence[Array], base: Array) -> Array:
        return task_arithmetic(deltas, self.weights, scale=self.scale)


def task_arithmetic(deltas: Sequence[Array], weights: Sequence[float], *, scale: float = 1.0) -> Array:
    """Weighted sum of the deltas times `scale` (Ilharco et al. 2023, lambda)."""
    return added(checked(deltas, weights), weights, Normalize.none, scale)


def plain_sum(weights: Sequence[float]) -> Plan:
    """Of so many deltas, each times its weight: what the baselines apply."""
    fixed = list(weights)
    return lambda _, deltas, __: TensorMerge(
        deltas,
        lambda d, _: task_arithmetic(d, fixed),
        [everything] * len(fixed),
        coefficients=fixed,
    )
