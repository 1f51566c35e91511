"""The weighted average of the deltas."""

from collections.abc import Sequence
from dataclasses import dataclass

from paft.config import Normalize, require
from paft.delta.rows import Array
from paft.merge.combine import added, checked
from paft.merge.method import WeightedMerge


@dataclass
class Linear(WeightedMerge, name="linear", title="Linear", source="Wortsman et al. 2022, arXiv:2203.05482"):
    """Weighted average of the deltas."""

    normalize: bool = True
    """Divide by the sum of the weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not self.normalize or sum(self.weights) != 0, "merge.weights", self.weights, "not summing to 0"
        )

    @property
    def coefficients(self) -> list[float]:
        total = sum(self.weights) if self.normalize else 1.0
        return [self.scale * weight / total for weight in self.weights]

    def merge_deltas(self, deltas: Sequence[Array], base: Array) -> Array:
        return linear(deltas, self.weights, normalize=self.normalize, scale=self.scale)


def linear(
    deltas: Sequence[Array], weights: Sequence[float], *, normalize: bool = True, scale: float = 1.0
) -> Array:
    """Weighted mean of the deltas (weighted sum unless `normalize`), times `scale`.

    Equals averaging whole models where the weights sum to 1. Raises `ValueError` for weights that sum to 0.
    """
    deltas = checked(deltas, weights)
    if normalize and abs(sum(weights)) < 1e-8:
        raise ValueError(f"weights must not sum to 0, got {list(weights)}; or set normalize=False")
    return added(deltas, weights, Normalize.weights if normalize else Normalize.none, scale)
