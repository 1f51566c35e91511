"""The tables of a Markdown file, filled from the CSV files of a report that lie beside it.

    python -m paft.report docs docs/study.md            fill them
    python -m paft.report docs docs/study.md --check    say whether they are what the files hold

A table stands between two comments; what is between them is replaced. Paths are relative to the Markdown file.

    <!-- paper FILE: | CONDITIONS -->         the rows of the paper's tables, from cells.csv
    <!-- claims FILE: | CONDITIONS -->        every test of a claim, from claims.csv
    <!-- comparisons FILE: | CONDITIONS -->   differences of cells, from comparisons.csv
    <!-- cells FILE: COLUMNS | CONDITIONS --> other cells, ordered by the columns that are no scores
    <!-- table FILE: COLUMNS | CONDITIONS --> rows of any other file as they are
    <!-- time FILE -->                        stages and their seconds, from stages.csv
    <!-- entries GROUP -->                    the choices of merge or preference, from their classes
    <!-- end -->

Columns have commas between. Conditions have semicolons between and may be left out: `merge=ties,dare` is a choice,
`limit=–` an empty cell, `sft_key=*` one that is not empty.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from paft.config import MergeConfig, PreferenceConfig
from paft.merge.methods import METHODS
from paft.objectives import OBJECTIVES
from paft.report.columns import MEASURES, score_columns
from paft.report.labels import method
from paft.report.numbers import DASH, plain_text
from paft.report.render import markdown
from paft.report.representatives import representatives
from paft.report.row import Row
from paft.report.saved import read_csv
from paft.report.tables import (
    Head,
    Table,
    cells_table,
    claims_table,
    comparisons_table,
    headings_in_front,
    plain_table,
    without,
)

TABLE = re.compile(
    r"(<!-- (paper|claims|comparisons|cells|time|table) (\S+?\.csv)(?:: (.*?))? -->\n).*?(<!-- end -->)",
    re.DOTALL,
)

ENTRIES = re.compile(r"(<!-- entries (merge|preference) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(file: Path) -> str:
    """The text of `file` with every table made anew. Raises `ValueError` for a table that cannot be made."""
    text = TABLE.sub(lambda match: _table(file, match), file.read_text(encoding="utf-8"))
    return ENTRIES.sub(lambda match: _between(match[1], entries(match[2]), match[3]), text)


def _table(file: Path, match: re.Match[str]) -> str:
    begin, kind, name, rest, end = match.groups()
    try:
        table = KINDS[kind](read_csv(file.parent / name), rest or "")
    except (OSError, ValueError, LookupError) as error:
        raise ValueError(f"{file}: {begin.strip()} cannot be filled: {error}") from None
    return _between(begin, table, end)


def _between(begin: str, table: Table, end: str) -> str:
    return begin + "\n" + markdown(table, align=False) + "\n\n" + end


def entries(group: str) -> Table:
    """What the choices of a group are: title, first sentence of the class's docstring, the options that not every
    choice of the group has, what it looks at, source."""
    lines = [
        [
            f"{group}={name}",
            entry.title,
            _first_sentence(entry),
            _own_options(entry, group),
            _needs(entry),
            entry.source,
        ]
        for name, entry in REGISTRIES[group][0].items()
    ]
    heads = (group, "title", "what it is", "options", "looks at", "source")
    return plain_table([*map(Head, heads)], lines)


REGISTRIES: dict[str, tuple[Mapping[str, Any], type[Any]]] = {
    "merge": (METHODS, MergeConfig),
    "preference": (OBJECTIVES, PreferenceConfig),
}
"""Group -> its choices, and what all of them have."""


def _own_options(entry: type[Any], group: str) -> str:
    shared = {f.name for f in fields(REGISTRIES[group][1])}
    own = [f.name for f in fields(entry) if f.name not in shared and f.metadata.get("identity", True)]
    return ", ".join(own) or DASH


def _needs(entry: type[Any]) -> str:
    if issubclass(entry, PreferenceConfig):
        rows = {"pairs": "pairs", "unpaired": "single answers"}[entry.rows]
        return f"{rows}, reference" if entry().needs_reference else rows
    return f"{entry.needs.value} of training rows" if entry.needs else "deltas"


def _first_sentence(entry: type) -> str:
    return re.split(r"(?<=[.;:])\s", inspect.cleandoc(entry.__doc__ or ""), maxsplit=1)[0].rstrip(".;:")


# --- the kinds of table ------------------------------------------------------------------------------


def paper(rows: Sequence[Row], words: str) -> Table:
    """Rows as in the paper's Table 1: mean over seeds ± standard error over items and seeds."""
    chosen = representatives(_asked(rows, words)[1])
    return headings_in_front(cells_table(chosen, names=[*map(method, chosen)], best=False))


def claims(rows: Sequence[Row], words: str) -> Table:
    """Effects in percentage points with their 95 % interval, and p after Holm's correction."""
    return without(claims_table(_asked(rows, words)[1]), "items", "seeds")


def comparisons(rows: Sequence[Row], words: str) -> Table:
    """Either side's mean and their difference with its 95 % interval, and p after Holm's correction."""
    return comparisons_table(_asked(rows, words)[1])


def some_cells(rows: Sequence[Row], words: str) -> Table:
    """Scores and measures as mean ± standard error, the other columns as they are."""
    columns, chosen = _asked(rows, words)
    scores = {c.name: c for c in score_columns(rows)} | MEASURES
    settings = [c for c in columns if c not in scores]
    chosen.sort(key=lambda r: [_order(r.get(c)) for c in settings])
    lines = [[scores[c].written(r) if c in scores else plain_text(r.get(c)) for c in columns] for r in chosen]
    return plain_table([Head(scores[c].title if c in scores else c) for c in columns], lines)


def time(rows: Sequence[Row], _: str) -> Table:
    """How many stages of each kind, their own seconds, and the most memory any took."""
    head, lines = ["stage", "number", "minutes", "seconds each", "peak GB", "commits"], []
    kinds = list(dict.fromkeys(r["stage"] for r in rows))
    for kind in (*kinds, "all"):
        stages = [r for r in rows if kind in (r["stage"], "all")]
        seconds = sum(r["seconds"] for r in stages)
        commits = ", ".join(sorted({str(r["commit"])[:7] for r in stages}))
        peak = max(r["peak_memory_gb"] for r in stages)
        lines.append(
            [
                kind,
                str(len(stages)),
                f"{seconds / 60:.1f}",
                f"{seconds / len(stages):.1f}",
                f"{peak:.1f}",
                commits,
            ]
        )
    return plain_table([*map(Head, head)], lines)


def any_table(rows: Sequence[Row], words: str) -> Table:
    """Every column where none is named."""
    columns, chosen = _asked(rows, words)
    columns = columns or list(rows[0])
    lines = [["" if r[c] in (None, "") else plain_text(r[c]) for c in columns] for r in chosen]
    return plain_table([*map(Head, columns)], lines)


def _asked(rows: Sequence[Row], words: str) -> tuple[list[str], list[Row]]:
    """The columns that are named, and the rows that meet the conditions."""
    names, _, conditions = words.partition("|")
    columns = [name.strip() for name in names.split(",") if name.strip()]
    pairs = (c.strip().partition("=") for c in conditions.split(";") if c.strip())
    allowed = {name: set(values.split(",")) for name, _, values in pairs}
    known: set[str] = set().union(*rows)
    if absent := [name for name in (*columns, *allowed) if name not in known]:
        raise ValueError(f"there is no column {', '.join(absent)}")
    return columns, [r for r in rows if all(_meets(r.get(name), values) for name, values in allowed.items())]


def _meets(value: Any, allowed: set[str]) -> bool:
    value = None if value == "" else value
    return plain_text(value) in allowed or (allowed == {"*"} and value is not None)


KINDS: dict[str, Callable[[Sequence[Row], str], Table]] = {
    "paper": paper,
    "claims": claims,
    "comparisons": comparisons,
    "cells": some_cells,
    "time": time,
    "table": any_table,
}


def _order(value: Any) -> tuple[bool, float, str]:
    number = float(value) if isinstance(value, int | float) else 0.0
    return value not in (None, ""), number, str(value)
