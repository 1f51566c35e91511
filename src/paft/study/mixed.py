"""The contrasts of a family by one linear mixed model of all its cells: a check of `paft.report.statistics`.

The score of item i under seed s in cell k of K is

    y[k, i, s] = mean[k] + a[i] + b[s] + (ka)[k, i] + (kb)[k, s] + e[k, i, s]

with independent normal effects but for the fixed means. In a contrast of cells a and b cancel, and

    variance of sum c[k] y[k] = |c|^2 (var(ka) / n + var(kb) / S + var(e) / (n S)).

`statistics` estimates the three parts for each contrast from its own differences; here every cell of the family tells
of them. The layout is balanced, so their restricted maximum likelihood estimates are those of the mean squares over
K - 1 orthonormal contrasts, as long as none is negative (Searle, Casella and McCulloch 1992, chapter 4); where both
would be, the variance is that of e alone. What the model assumes beyond `statistics` is that the parts are alike in all
cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from paft.report.cells import Term, arms_of, combine
from paft.report.items import Scores
from paft.report.row import Row
from paft.report.statistics import LEVEL, Part, Squares, squares, sum_of


@dataclass(frozen=True)
class Fit:
    """A contrast of two cells."""

    difference: float
    stderr: float
    low: float
    high: float
    p: float


class Mixed:
    """The model of some cells, each the rows of its seeds, in one column.

    Raises `ValueError` for cells that do not share items and at least two seeds.
    """

    def __init__(self, cells: Sequence[Sequence[Row]], column: str, scores: Scores) -> None:
        self.cells, self.column, self.scores = cells, column, scores
        found = [self._squares(contrast) for contrast in helmert(len(cells))]
        # of K - 1 independent estimates of one number each the mean
        self.parts = Squares(*(_mean(parts) for parts in zip(*found, strict=True)))

    def difference(self, left: int, right: int) -> Fit:
        """Of the cells at two places, with its 95 % interval and two-sided p."""
        terms = [
            Term(1.0, self.cells[left], self.column),
            Term(-1.0, self.cells[right], self.column),
        ]
        effect = combine(terms, self.scores)
        assert effect is not None
        spread = self.parts.together
        error = float(np.sqrt(2 * spread.variance))
        half = float(stats.t.ppf((1 + LEVEL) / 2, spread.freedom)) * error
        p = (
            float(2 * stats.t.sf(abs(effect.value) / error, spread.freedom))
            if error
            else float(effect.value == 0)
        )
        return Fit(effect.value, error, effect.value - half, effect.value + half, p)

    def _squares(self, contrast: Sequence[float]) -> Squares:
        pairs = zip(contrast, self.cells, strict=True)
        terms = [Term(weight, rows, self.column) for weight, rows in pairs if weight]
        arms = arms_of(terms, self.scores)
        found = squares(arms) if arms and len(arms) == 1 else None
        if found is None:
            raise ValueError(
                f"a mixed model of {self.column} needs cells that share items and at least two seeds"
            )
        return found


def helmert(size: int) -> list[list[float]]:
    """size - 1 orthonormal contrasts of `size` cells: each with the mean of those before it."""
    rows = []
    for place in range(1, size):
        row = [1.0] * place + [-float(place)] + [0.0] * (size - place - 1)
        length = float(np.sqrt(place * (place + 1)))
        rows.append([value / length for value in row])
    return rows


def _mean(parts: Sequence[Part]) -> Part:
    return sum_of((part.variance / len(parts), part.freedom) for part in parts)
