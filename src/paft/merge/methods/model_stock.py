"""Model Stock: the mean of the deltas, as far towards it as the angle between them says."""

from collections.abc import Sequence
from dataclasses import dataclass

from paft.delta.delta import Delta
from paft.delta.rows import Rows
from paft.merge.method import (
    LEAST,
    Adapters,
    Method,
    Plan,
    TensorMerge,
    gram_of_adapters,
    gram_of_deltas,
)
from paft.merge.methods.task_arithmetic import task_arithmetic
from paft.merge.sparsify import everything


@dataclass
class ModelStock(
    Method, name="model_stock", title="Model Stock", source="Jang et al. 2024, arXiv:2403.19522"
):
    """The mean of the deltas times t = 2 cos / (1 + cos) of the angle between them, in each tensor.

    Made for trainings of one task, whose deltas share a direction. Deltas of two tasks are nearly orthogonal, which
    gives the base: refused where t is below 0.1 over all tensors together, as `scale=0.1` of merge=linear says that
    openly.
    """

    def refuse(self, adapters: Adapters) -> None:
        cosine = gram_of_adapters(adapters).cosine
        if (t := ratio(cosine)) < LEAST:
            raise ValueError(
                f"merge=model_stock keeps t = 2 cos / (1 + cos) of the mean of the deltas: the cosine of these two is "
                f"{cosine:.4f}, so t = {t:.4f} and the result would be the base (it is refused below {LEAST}); "
                "merge=linear keeps the whole mean"
            )

    def plan(self, adapters: Adapters) -> Plan:
        def plan(name: str, deltas: Sequence[Delta], base: Rows) -> TensorMerge:
            share = ratio(gram_of_deltas(*deltas).cosine) / 2
            both = [share, share]
            keep = [everything] * 2
            return TensorMerge(deltas, lambda d, _: task_arithmetic(d, both), keep, coefficients=both)

        return plan


def ratio(cosine: float) -> float:
    """The interpolation ratio t = N cos / (1 + (N - 1) cos) of N = 2 deltas (equation 3); 0 of opposite ones, where it
    has no value."""
    return 0.0 if cosine <= -1 + 1e-6 else 2 * cosine / (1 + cosine)
