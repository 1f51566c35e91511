"""Two cells, or two sweeps cell by cell: differences with their intervals, paired by items and seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paft.report.cells import Term, combine
from paft.report.columns import Column, score_columns, score_names
from paft.report.items import Scores
from paft.report.options import applies
from paft.report.row import Row, follows_seed, is_option
from paft.report.selection import SETTINGS, Selection, exact, select, text_of
from paft.report.statistics import Estimate, holm
from paft.report.table import require_rows


@dataclass(frozen=True)
class Difference:
    """One column: the mean of either side over all pairs of cells, and of the differences."""

    column: Column
    left: Estimate
    right: Estimate
    difference: Estimate
    corrected: float | None
    """p of the difference after Holm's correction over the columns."""


@dataclass(frozen=True)
class Pair:
    """Two cells that differ in what was asked for: `label` is what the other pairs differ from it in."""

    label: str
    left: list[Row]
    right: list[Row]
    differences: dict[str, Estimate]


@dataclass(frozen=True)
class Comparison:
    columns: list[Column]
    differences: list[Difference]
    pairs: list[Pair]
    also_differ: dict[str, tuple[str, str]]
    """Settings that nobody named and that differ too: column -> values of either side."""
    alone: list[str]
    """Cells that have no partner, after the side they are of, A or B."""


def compare(store: Path, left: str, right: str) -> Comparison:
    """Compare what `left` and `right` select in the store: keys or their beginnings, or `column=value,...`.

    Raises `ValueError` for a word that selects nothing or too much, and for cells that cannot be compared.
    """
    table = require_rows(store)
    one, other = select(table, left), select(table, right)
    matched, shared, alone = match(one, other)
    scores = Scores(store, [*one.rows, *other.rows])
    columns = [c for c in score_columns([*one.rows, *other.rows]) if _in_all(c, matched)]
    if not columns:
        raise ValueError(
            f"{left} and {right} have no score in common: {score_names(one.rows)} and {score_names(other.rows)}; "
            "evaluate both with the same evaluate options"
        )
    pairs = [_pair(a, b, shared, columns, scores) for a, b in matched]
    differ = _also_differ(matched, one.named | other.named | set(shared))
    return Comparison(columns, _over_pairs(columns, pairs, scores), pairs, differ, alone)


# --- which cells belong together ---------------------------------------------------------------------


def match(one: Selection, other: Selection) -> tuple[list[tuple[list[Row], list[Row]]], list[str], list[str]]:
    """(pairs of cells, settings that tell the pairs apart, cells without a partner).

    A setting that a side does not have (a merge method, for sequential training) fits any. Raises `ValueError` where
    nothing fits, or more than one cell.
    """
    left, right = list(one.cells.values()), list(other.cells.values())
    named = one.named | other.named
    shared = [c for c in _settings([*one.rows, *other.rows]) if c not in named and _varies(c, left, right)]
    pairs, alone, taken = [], [], set()
    for cell in left:
        fitting = [b for b in right if all(_fits(cell[0], b[0], c) for c in shared)]
        if len(fitting) > 1:
            apart = [c for c in _settings(other.rows) if len({exact(_value(b[0], c)) for b in fitting}) > 1]
            hint = f"name one of {', '.join(apart)}" if apart else "give their keys"
            raise ValueError(f"{len(fitting)} cells of {other.text} fit one cell of {one.text}; {hint}")
        if not fitting:
            alone.append(f"A: {_describe(cell[0], shared) or one.text}")
            continue
        if fitting[0][0].evaluate_key == cell[0].evaluate_key:
            raise ValueError(f"{one.text} and {other.text} select the same cell {cell[0].evaluate_key}")
        pairs.append((cell, fitting[0]))
        taken.add(fitting[0][0].family)
    if not pairs:
        raise ValueError(
            f"no cell of {one.text} has a partner in {other.text} with the same {', '.join(shared)}"
        )
    partners = (b[0] for b in right if b[0].family not in taken)
    alone += [f"B: {_describe(row, shared) or other.text}" for row in partners]
    return pairs, shared, alone


def _settings(table: Sequence[Row]) -> list[str]:
    return [*SETTINGS, *dict.fromkeys(c for r in table for c in r if is_option(c))]


def _varies(column: str, *sides: Sequence[list[Row]]) -> bool:
    return any(len({exact(_value(cell[0], column)) for cell in side} - {"none"}) > 1 for side in sides)


def _value(row: Row, column: str) -> object:
    return None if follows_seed(row, column) else row.get(column)


def _fits(one: Row, other: Row, column: str) -> bool:
    mine, theirs = exact(_value(one, column)), exact(_value(other, column))
    return mine == theirs or "none" in (mine, theirs)


def _describe(row: Row, columns: Sequence[str]) -> str:
    return " ".join(f"{c}={text_of(row.get(c))}" for c in columns if text_of(_value(row, c)) != "none")


def _also_differ(
    pairs: Sequence[tuple[list[Row], list[Row]]], named: frozenset[str]
) -> dict[str, tuple[str, str]]:
    """Settings beside those named; what a side cannot have, as the penalty's options at lambda = 0, is none."""
    differing = {}
    for column in _settings([r for a, b in pairs for r in (*a, *b)]):
        if column in named or not all(applies(cell[0], column) for pair in pairs for cell in pair):
            continue
        sides = [sorted({_other(pair[side], pair[1 - side], column) for pair in pairs}) for side in (0, 1)]
        if sides[0] != sides[1]:
            differing[column] = (", ".join(sides[0]), ", ".join(sides[1]))
    return differing


def _other(cell: list[Row], partner: list[Row], column: str) -> str:
    """The cell's value; methods and objectives do not have the same options."""
    lacks = column.startswith(("merge.", "preference.")) and _value(cell[0], column) is None
    same = (cell[0].merge, cell[0].preference) == (partner[0].merge, partner[0].preference)
    return "no such option" if lacks and not same else text_of(_value(cell[0], column))


# --- differences -------------------------------------------------------------------------------------


def _in_all(column: Column, pairs: Sequence[tuple[list[Row], list[Row]]]) -> bool:
    return all(r.get(column.name) is not None for a, b in pairs for r in (*a, *b))


def _pair(
    left: list[Row], right: list[Row], shared: Sequence[str], columns: Sequence[Column], scores: Scores
) -> Pair:
    apart = {c.name: combine([Term(1.0, left, c.name), Term(-1.0, right, c.name)], scores) for c in columns}
    label = _describe(right[0] | {c: v for c, v in left[0].items() if v not in (None, "")}, shared)
    return Pair(label, left, right, {c: e for c, e in apart.items() if e is not None})


def over_pairs(
    pairs: Sequence[tuple[list[Row], list[Row]]], left_column: str, right_column: str, scores: Scores
) -> tuple[Estimate | None, Estimate | None, Estimate | None]:
    """Means over all pairs of the left sides, of the right sides and of the differences; None without the numbers."""
    share = 1 / len(pairs)
    left = [Term(share, a, left_column) for a, _ in pairs]
    right = [Term(share, b, right_column) for _, b in pairs]
    apart = [*left, *(t._replace(weight=-share) for t in right)]
    return combine(left, scores), combine(right, scores), combine(apart, scores)


def _over_pairs(columns: Sequence[Column], pairs: Sequence[Pair], scores: Scores) -> list[Difference]:
    estimates = []
    for column in columns:
        left, right, apart = over_pairs([(p.left, p.right) for p in pairs], column.name, column.name, scores)
        if left and right and apart:
            estimates.append((column, left, right, apart))
    corrected = iter(holm([apart.p for *_, apart in estimates if apart.p is not None]))
    return [
        Difference(column, left, right, apart, None if apart.p is None else next(corrected))
        for column, left, right, apart in estimates
    ]
