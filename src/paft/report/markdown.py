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
    <!-- end -->

Columns have commas between. Conditions have semicolons between and may be left out: `merge=ties,dare` is a choice,
`limit=–` an empty cell, `sft_key=*` one that is not empty.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from paft.report.labels import MEASURES, Column, Row, method, score_columns, section, short
from paft.report.plain import plain

TABLE = re.compile(
    r"(<!-- (paper|claims|comparisons|cells|time|table) (\S+?\.csv)(?:: (.*?))? -->\n).*?(<!-- end -->)",
    re.DOTALL,
)


def filled(file: Path) -> str:
    """The text of `file` with every table made anew. Raises `ValueError` for a table that cannot be made."""
    return TABLE.sub(lambda found: _table(file, found), file.read_text(encoding="utf-8"))


def _table(file: Path, found: re.Match[str]) -> str:
    begin, kind, name, rest, end = found.groups()
    try:
        lines = KINDS[kind](read(file.parent / name), rest or "")
    except (OSError, ValueError, LookupError) as error:
        raise ValueError(f"{file}: {begin.strip()} cannot be filled: {error}") from None
    return begin + "\n" + "\n".join(lines) + "\n\n" + end


def read(path: Path) -> list[Row]:
    """The rows of a CSV file of the report; empty cells are None."""
    import pandas as pd

    table = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype={"seed": str, "seeds": str})
    found = table.astype(object).where(table.notna(), None).to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in found]


# --- the kinds of table ------------------------------------------------------------------------------


def paper(rows: Sequence[Row], words: str) -> list[str]:
    """Rows as in the paper's Table 1: mean over seeds ± standard error over items and seeds."""
    chosen = plain(_asked(rows, words)[1])
    scores = score_columns(chosen)
    head = ["", "method", "λ", "seeds", *(c.title for c in scores), "SFT < 1e-5", "preference < 1e-5"]
    body, before = [], ""
    for row in chosen:
        name = section(row)
        sparsities = [_share(row.get(f"{branch}_sparsity")) for branch in ("sft", "preference")]
        cell = [method(row), _text(row["lambda"]), _text(row["num_seeds"]), *(_score(row, c) for c in scores)]
        body.append([name if name != before else "", *cell, *sparsities])
        before = name
    return _grid(head, body)


def claims(rows: Sequence[Row], words: str) -> list[str]:
    """Effects in percentage points with their 95 % interval, and p after Holm's correction."""
    head = ["claim", "preference", "λ", "verdict", "effect", "95 % interval", "p", "least contrast, or why"]
    body = []
    for r in _asked(rows, words)[1]:
        interval = "–" if r["low"] is None else f"{r['low']:+.2f} to {r['high']:+.2f}"
        effect = "–" if r["effect"] is None else f"{r['effect']:+.2f}"
        p = "–" if r["p_corrected"] is None else f"{r['p_corrected']:.3f}"
        told = "; ".join(filter(None, (r["contrast"], r["why"] if r["p_corrected"] is None else None)))
        objective = (r["preference"] or "").upper()
        body.append(
            [r["claim"], objective, _text(r["lambda"]), f"**{r['verdict']}**", effect, interval, p, told]
        )
    return _grid(head, body)


def comparisons(rows: Sequence[Row], words: str) -> list[str]:
    """Either side's mean and their difference with its 95 % interval, and p after Holm's correction."""
    head = ["question", "column", "A", "B", "A - B", "95 % interval", "p"]
    body = []
    for r in _asked(rows, words)[1]:
        numbers = ["–" if r[side] is None else f"{r[side]:.3g}" for side in ("left", "right")]
        apart = "–" if r["difference"] is None else f"{r['difference']:+.3g}"
        interval = "–" if r["low"] is None else f"{r['low']:+.3g} to {r['high']:+.3g}"
        p = "–" if r["p_corrected"] is None else f"{r['p_corrected']:.3f}"
        body.append([r["question"], r["column"].replace("_", " "), *numbers, apart, interval, p])
    return _grid(head, body)


def some_cells(rows: Sequence[Row], words: str) -> list[str]:
    """Scores and measures as mean ± standard error, the other columns as they are."""
    columns, chosen = _asked(rows, words)
    scores = {c.name: c for c in score_columns(rows)} | MEASURES
    settings = [c for c in columns if c not in scores]
    chosen.sort(key=lambda r: [_order(r.get(c)) for c in settings])
    body = [[_score(r, scores[c]) if c in scores else _text(r.get(c)) for c in columns] for r in chosen]
    return _grid([scores[c].title if c in scores else c for c in columns], body)


def time(rows: Sequence[Row], _: str) -> list[str]:
    """How many stages of each kind, their own seconds, and the most memory any took."""
    head, body = ["stage", "number", "minutes", "seconds each", "peak GB", "commits"], []
    kinds = list(dict.fromkeys(r["stage"] for r in rows))
    for kind in (*kinds, "all"):
        own = [r for r in rows if kind in (r["stage"], "all")]
        seconds = sum(r["seconds"] for r in own)
        commits = ", ".join(sorted({str(r["commit"])[:7] for r in own}))
        peak = max(r["peak_memory_gb"] for r in own)
        body.append(
            [kind, str(len(own)), f"{seconds / 60:.1f}", f"{seconds / len(own):.1f}", f"{peak:.1f}", commits]
        )
    return _grid(head, body)


def table(rows: Sequence[Row], words: str) -> list[str]:
    """Every column where none is named."""
    columns, chosen = _asked(rows, words)
    columns = columns or list(rows[0])
    return _grid(columns, [["" if r[c] is None else _text(r[c]) for c in columns] for r in chosen])


def _asked(rows: Sequence[Row], words: str) -> tuple[list[str], list[Row]]:
    """The columns that are named, and the rows that meet the conditions."""
    names, _, conditions = words.partition("|")
    columns = [name.strip() for name in names.split(",") if name.strip()]
    pairs = (c.strip().partition("=") for c in conditions.split(";") if c.strip())
    wanted = {name: set(values.split(",")) for name, _, values in pairs}
    known: set[str] = set().union(*rows)
    if absent := [name for name in (*columns, *wanted) if name not in known]:
        raise ValueError(f"there is no column {', '.join(absent)}")
    return columns, [r for r in rows if all(_meets(r.get(name), values) for name, values in wanted.items())]


def _meets(value: object, allowed: set[str]) -> bool:
    return _text(value) in allowed or (allowed == {"*"} and value is not None)


KINDS: dict[str, Callable[[Sequence[Row], str], list[str]]] = {
    "paper": paper,
    "claims": claims,
    "comparisons": comparisons,
    "cells": some_cells,
    "time": time,
    "table": table,
}


# --- cells of a table --------------------------------------------------------------------------------


def _grid(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body)]


def _score(row: Row, column: Column) -> str:
    error = column.error(row)
    return column.text(column.value(row)) + (f" ± {error}" if error else "")


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _text(value: object) -> str:
    return short(value) if isinstance(value, float) else "–" if value is None else str(value)


def _order(value: object) -> tuple[bool, float, str]:
    number = float(value) if isinstance(value, int | float) else 0.0
    return value is not None, number, str(value)
