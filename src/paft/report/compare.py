"""Two cells, or two sweeps cell by cell: differences with their intervals, paired by items and seeds."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paft.report.cells import Term, combine, members
from paft.report.items import Scores
from paft.report.labels import Column, Row, score_columns, score_names, short
from paft.report.statistics import Estimate, holm
from paft.report.table import require_rows

SETTINGS = (
    *("base", "data", "paradigm", "preference", "lambda", "merge", "evaluate", "limit", "template"),
    *("sft_lr", "preference_lr", "preference_beta", "l1_of", "l1_method", "l1_target"),
)
"""What may tell cells apart, beside the merge options."""
KEYS = ("evaluate_key", "merge_key", "family")


@dataclass(frozen=True)
class Selection:
    """The rows that a word on the command line means."""

    text: str
    rows: list[Row]
    named: frozenset[str]
    """Columns the word gives a value for."""

    @property
    def cells(self) -> dict[str, list[Row]]:
        return members(self.rows)


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
    """Cells of either side that have no partner."""


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


# --- what a word selects -----------------------------------------------------------------------------


def select(table: Sequence[Row], text: str) -> Selection:
    """The rows with a key that begins with `text`, or those with the given value in every column named."""
    if "=" not in text:
        return _by_key(table, text)
    wanted = {}
    for part in re.split(r",(?=[\w.]+=)", text):
        column, _, value = part.partition("=")
        wanted[column.strip()] = value.strip()
    known = sorted(
        {c for r in table for c in r if c in (*SETTINGS, "seed", "variant") or c.startswith("merge.")}
    )
    found = list(table)
    for column, value in wanted.items():
        if column not in known:
            raise ValueError(f"there is no setting {column!r} to select by; there are {', '.join(known)}")
        there = list(dict.fromkeys(_text(r.get(column)) for r in found))
        found = [r for r in found if _same(r.get(column), value)]
        if not found:
            raise ValueError(f"{text}: no cell has {column}={value}; there are {', '.join(there)}")
    return Selection(text, found, frozenset(wanted))


def _by_key(table: Sequence[Row], text: str) -> Selection:
    if not re.fullmatch("[0-9a-f]{1,16}", text):
        raise ValueError(
            f"{text!r} is neither the beginning of a key nor a selector such as lambda=1e-4,merge=ties"
        )
    for column in KEYS:
        found = [r for r in table if str(r[column]).startswith(text)]
        keys = sorted({r[column] for r in found})
        if len(keys) > 1:
            raise ValueError(f"{len(keys)} keys begin with {text}: {', '.join(keys)}; give more of it")
        if found:
            return Selection(text, found, frozenset())
    raise ValueError(f"no finished evaluation or merge has a key that begins with {text}; see results.csv")


def _same(value: object, text: str) -> bool:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(text) == float(value)
        except ValueError:
            return False
    return _text(value).lower() == text.lower()


def _text(value: object) -> str:
    return short(value) if isinstance(value, float) else "none" if value in (None, "") else str(value)


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
            apart = [c for c in _settings(other.rows) if len({_text(_value(b[0], c)) for b in fitting}) > 1]
            hint = f"name one of {', '.join(apart)}" if apart else "give their keys"
            raise ValueError(f"{len(fitting)} cells of {other.text} fit one cell of {one.text}; {hint}")
        if not fitting:
            alone.append(_describe(cell[0], shared) or one.text)
            continue
        if fitting[0][0]["evaluate_key"] == cell[0]["evaluate_key"]:
            raise ValueError(f"{one.text} and {other.text} select the same cell {cell[0]['evaluate_key']}")
        pairs.append((cell, fitting[0]))
        taken.add(fitting[0][0]["family"])
    if not pairs:
        raise ValueError(
            f"no cell of {one.text} has a partner in {other.text} with the same {', '.join(shared)}"
        )
    alone += [_describe(b[0], shared) or other.text for b in right if b[0]["family"] not in taken]
    return pairs, shared, alone


def _settings(table: Sequence[Row]) -> list[str]:
    options = dict.fromkeys(c for r in table for c in r if c.startswith("merge."))
    return [*SETTINGS, *options]


def _varies(column: str, *sides: Sequence[list[Row]]) -> bool:
    return any(len({_text(_value(cell[0], column)) for cell in side} - {"none"}) > 1 for side in sides)


def _value(row: Row, column: str) -> object:
    follows = column == "merge.seed" and row.get(column) == row["seed"]
    return None if follows else row.get(column)


def _fits(one: Row, other: Row, column: str) -> bool:
    mine, theirs = _text(_value(one, column)), _text(_value(other, column))
    return mine == theirs or "none" in (mine, theirs)


def _describe(row: Row, columns: Sequence[str]) -> str:
    return " ".join(f"{c}={_text(row[c])}" for c in columns if _text(_value(row, c)) != "none")


def _also_differ(
    pairs: Sequence[tuple[list[Row], list[Row]]], named: frozenset[str]
) -> dict[str, tuple[str, str]]:
    found = {}
    for column in _settings([r for a, b in pairs for r in (*a, *b)]):
        sides = [sorted({_text(_value(pair[side][0], column)) for pair in pairs}) for side in (0, 1)]
        if column not in named and sides[0] != sides[1]:
            found[column] = (", ".join(sides[0]), ", ".join(sides[1]))
    return found


# --- differences -------------------------------------------------------------------------------------


def _in_all(column: Column, pairs: Sequence[tuple[list[Row], list[Row]]]) -> bool:
    return all(r.get(column.name) is not None for a, b in pairs for r in (*a, *b))


def _pair(
    left: list[Row], right: list[Row], shared: Sequence[str], columns: Sequence[Column], scores: Scores
) -> Pair:
    found = {c.name: combine([Term(1.0, left, c.name), Term(-1.0, right, c.name)], scores) for c in columns}
    label = _describe({**right[0], **{c: v for c, v in left[0].items() if v not in (None, "")}}, shared)
    return Pair(label, left, right, {c: e for c, e in found.items() if e is not None})


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
    found = []
    for column in columns:
        estimates = over_pairs([(p.left, p.right) for p in pairs], column.name, column.name, scores)
        if all(estimates):
            found.append((column, *estimates))
    ps = [e[3].p for e in found if e[3] is not None and e[3].p is not None]
    corrected = iter(holm(ps))
    return [
        Difference(c, a, b, d, None if d.p is None else next(corrected))
        for c, a, b, d in found
        if a is not None and b is not None and d is not None
    ]
