"""The seeds of one setting as one cell: means over seeds, a standard error for every score, and differences."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from paft.evaluate.items import Floats
from paft.report.backends import backends
from paft.report.columns import MEASURES, score_names
from paft.report.items import Score, Scores
from paft.report.row import MERGE_SEEDS, Row, follows_seed
from paft.report.scope import ranked
from paft.report.statistics import Arm, Estimate, Sample, estimate


def members(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each cell, by family, one a seed; where a family has a seed twice, the one finished last.

    Cells come in the order of the rows.
    """
    by_seed: dict[str, dict[int | None, Row]] = {row.family: {} for row in rows}
    for row in sorted(rows, key=lambda r: str(r.get("finished"))):
        by_seed[row.family][row.seed] = row
    return {
        name: [by[s] for s in sorted(by, key=lambda s: -1 if s is None else s)]
        for name, by in by_seed.items()
    }


def cells(rows: Sequence[Row], scores: Scores) -> list[Row]:
    """One row a cell in the order of the table: the first seed's, with means over seeds in place of its numbers.

    Added columns are `seeds`, `num_seeds`, `evaluate_keys`, and `<column>_stderr` for every score and measure, over
    items and seeds; with one seed over items alone. A cell of one seed whose items are unknown keeps lm-eval's.
    """
    return ranked([_cell(group, scores) for group in members(rows).values()])


def _cell(group: Sequence[Row], scores: Scores) -> Row:
    first, seeds = group[0], ",".join(str(r.seed) for r in group if r.seed is not None)
    columns = {"num_seeds": len(group), "seeds": seeds}
    columns["evaluate_keys"] = " ".join(r.evaluate_key for r in group)
    columns["backend"] = ", ".join(backends(group))
    if len(group) > 1:
        columns |= {"seed": seeds, **{name: seeds for name in MERGE_SEEDS if follows_seed(first, name)}}
    for column in (*score_names(group), *MEASURES):
        columns |= _over_seeds(group, column, scores)
    return first | columns


def _over_seeds(group: Sequence[Row], column: str, scores: Scores) -> dict[str, float | None]:
    summary = combine([Term(1.0, group, column)], scores)
    if summary is None:
        return {}
    single = len(group) == 1 and summary.num_items is None
    stderr = group[0].get(f"{column}_stderr") if single else summary.stderr
    return {column: summary.value, f"{column}_stderr": stderr}


# --- sums and differences of cells -------------------------------------------------------------------


class Term(NamedTuple):
    """A cell's column, times `weight`, in a sum of several."""

    weight: float
    rows: Sequence[Row]
    """The cell's seeds."""
    column: str = "average"


def combine(terms: Sequence[Term], scores: Scores, *, minus: float = 0.0) -> Estimate | None:
    """The weighted sum of cells, less `minus`; None where a cell has no number.

    Cells are paired by the seeds they have in common, and by items; cells that share no seed with the others vary by
    themselves. The base model has no seed and fits any. Raises `ValueError` for cells that did not answer the same
    items, and for cells that share seeds two by two and none all together.
    """
    arms = arms_of(terms, scores)
    return None if arms is None else estimate(arms, minus=minus)


def arms_of(terms: Sequence[Term], scores: Scores) -> list[Arm] | None:
    """The weighted sum of cells as arms that vary by themselves; None, and `ValueError`, as for `combine`."""
    by_term = [_by_seed(term, scores) for term in terms]
    if not all(by_term):
        return None
    for term in terms[1:]:
        if (
            not scores.paired(terms[0].rows[0], term.rows[0], terms[0].column)
            and term.column == terms[0].column
        ):
            raise ValueError(
                f"{term.rows[0]['evaluate_key']} and {terms[0].rows[0]['evaluate_key']} did not answer the same items "
                f"of {term.column}; evaluate both with the same evaluate options"
            )
    return _arms([(t.weight, by) for t, by in zip(terms, by_term, strict=True)])


def _by_seed(term: Term, scores: Scores) -> dict[int | None, Score]:
    scored = {r["seed"]: scores.of(r, term.column) for r in term.rows}
    return {seed: score for seed, score in scored.items() if score is not None}


Part = tuple[float, Mapping[int | None, Score]]
"""The weight of a cell and its scores by seed."""


def _arms(parts: Sequence[Part]) -> list[Arm]:
    """An arm for each set of cells that share seeds, over the seeds that all of them have."""
    fixed, groups = [part for part in parts if None in part[1]], list[list[Part]]()
    for part in parts:
        if None not in part[1]:
            joined = [g for g in groups if any(part[1].keys() & by.keys() for _, by in g)]
            groups = [g for g in groups if g not in joined] + [[*(p for g in joined for p in g), part]]
    if not groups:
        return [_arm(fixed, [None])]
    common = [set.intersection(*(set(by) for _, by in group)) for group in groups]
    if not all(common):
        raise ValueError(
            "these cells share seeds two by two, and none all together: train all with some of them"
        )
    groups[0] = [*fixed, *groups[0]]
    return [_arm(group, sorted(seeds, key=str)) for group, seeds in zip(groups, common, strict=True)]


def _arm(parts: Sequence[Part], seeds: Sequence[int | None]) -> Arm:
    rows = [[(weight, by[seed if seed in by else None]) for weight, by in parts] for seed in seeds]
    values = np.array([sum(weight * score.value for weight, score in row) for row in rows])
    asked = {frozenset(s for _, score in row for s in score.items or ()) for row in rows}
    if len(asked) > 1 or any(score.items is None for row in rows for _, score in row):
        return Arm(values, None)
    matrices: dict[Sample, Floats] = {}
    for number, row in enumerate(rows):
        for weight, score in row:
            for sample, items in (score.items or {}).items():
                matrix = matrices.setdefault(sample, np.zeros((len(rows), len(items))))
                matrix[number] += weight * items
    return Arm(values, matrices)
