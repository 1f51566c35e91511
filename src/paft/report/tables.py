"""One model of a table for the page, the terminal, Markdown files and W&B, and the two tables that all of them show.

A table is text already: `paft.report.render` prints it as Markdown or in the terminal, page.html as HTML.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, zip_longest
from typing import Any

from paft.report.columns import Column, score_columns
from paft.report.labels import Differences, labels, section
from paft.report.names import objective_title
from paft.report.numbers import DASH, interval, p_value, percent, plain_text, short, signed
from paft.report.paper import printed
from paft.report.row import Row


@dataclass(frozen=True)
class Head:
    """The head of a column; numbers stand at the right, and are never cut where there is little room."""

    text: str
    numeric: bool = True
    apart: bool = False
    """A rule stands before it."""


@dataclass(frozen=True)
class Entry:
    """The text of one place, and what stands smaller behind it."""

    text: str
    error: str = ""
    """Its standard error."""
    strong: bool = False
    tone: str = ""
    """`held`, `failed` or `open` of a verdict; `code` of keys, one a line."""


@dataclass(frozen=True)
class Line:
    entries: list[Entry]
    details: list[tuple[str, str]] = field(default_factory=list)
    """(what, text) that a page folds away, and others leave out."""


@dataclass(frozen=True)
class Section:
    """Lines under one heading; empty where they need none."""

    heading: str
    lines: list[Line]


@dataclass(frozen=True)
class Table:
    head: list[Head]
    sections: list[Section]
    title: str = ""
    caption: str = ""

    @property
    def lines(self) -> list[Line]:
        return [line for part in self.sections for line in part.lines]


def plain_table(
    head: Sequence[Head], lines: Sequence[Sequence[str]], *, title: str = "", caption: str = ""
) -> Table:
    """A table of texts under no heading."""
    return Table(list(head), [Section("", [Line([*map(Entry, line)]) for line in lines])], title, caption)


# --- cells -------------------------------------------------------------------------------------------


def cells_table(
    rows: Sequence[Row],
    *,
    names: Sequence[str] | None = None,
    best: bool = True,
    paper: Sequence[Mapping[str, Any]] = (),
    details: Mapping[str, list[tuple[str, str]]] | None = None,
) -> Table:
    """Rows that may be compared, under the headings of the paper's Table 1; the `best` of each column is strong. Where
    merges stand at several norms, `merge.norm` is a column.

    The caption says what rows have that do not name an option in which others differ.

    `names` are the rows', by default `labels`. `paper` are rows of `read_paper`: its averages of the same rows stand
    beside. `details` of a row go by its evaluate key.
    """
    scores, sources = (
        score_columns(rows),
        list(dict.fromkeys(base for r in rows for base in printed(paper, r))),
    )
    tops = [column.best(rows) if best else None for column in scores]
    several = len({r.norm for r in rows} - {""}) > 1
    head = [
        Head("method", numeric=False),
        Head("λ"),
        *([Head("norm", numeric=False)] * several),
        Head("seeds"),
    ]
    head += [Head(c.title, apart=c.name == "average") for c in scores]
    head += [Head(f"paper's average, {base}", apart=base == sources[0]) for base in sources]
    head += [Head("SFT < 1e-5", apart=True), Head("preference < 1e-5")]
    named = list(zip(rows, names or _named(rows, without_norm=several), strict=True))
    sections = []
    for heading, group in groupby(named, key=lambda pair: section(pair[0])):
        lines = []
        for row, name in group:
            theirs = printed(paper, row)
            beside = [f"{100 * theirs[base]:.2f}" if base in theirs else DASH for base in sources]
            entries = [Entry(name), Entry(short(row.weight)), *([Entry(row.norm or DASH)] * several)]
            entries.append(Entry(str(row.num_seeds)))
            entries += [_score(column, row, top) for column, top in zip(scores, tops, strict=True)]
            entries += [Entry(text) for text in (*beside, *_shares(row))]
            lines.append(Line(entries, (details or {}).get(row.evaluate_key, [])))
        sections.append(Section(heading, lines))
    unnamed = "" if names else ", ".join(Differences(rows).unnamed())
    return Table(head, sections, caption=unnamed and f"Rows that do not say otherwise have {unnamed}.")


def _named(rows: Sequence[Row], *, without_norm: bool) -> list[str]:
    """`labels`; without the norm where that has a column of its own."""
    if not without_norm:
        return labels(rows)
    return [" ".join(w for w in text.split(" ") if not w.startswith("norm=")) for text in labels(rows)]


def _score(column: Column, row: Row, best: float | None) -> Entry:
    value = column.value(row)
    return Entry(column.text(value), column.error(row), strong=value is not None and value == best)


def _shares(row: Row) -> list[str]:
    return [percent(row.get(f"{branch}_sparsity"), " %") for branch in ("sft", "preference")]


def without(table: Table, *heads: str) -> Table:
    """The table without these columns, for where there is less room."""
    columns = [place for place, head in enumerate(table.head) if head.text not in heads]
    sections = [
        Section(
            part.heading, [replace(line, entries=[line.entries[i] for i in columns]) for line in part.lines]
        )
        for part in table.sections
    ]
    return replace(table, head=[table.head[i] for i in columns], sections=sections)


def headings_in_front(table: Table) -> Table:
    """The headings as a first column, each at its first line."""
    lines = [
        replace(line, entries=[Entry(heading or ""), *line.entries])
        for part in table.sections
        for heading, line in zip_longest([part.heading], part.lines)
    ]
    return replace(table, head=[Head("", numeric=False), *table.head], sections=[Section("", lines)])


# --- claims ------------------------------------------------------------------------------------------

TONES = {"held": "held", "did not hold": "failed"}


def claims_table(
    tests: Sequence[Mapping[str, Any]], beside: Sequence[Mapping[str, float]] | None = None
) -> Table:
    """Every test of a claim, rows of claims.csv: effects in percentage points, p corrected over the table.

    `beside` are the effects in the paper's own averages for each test, by base model, in shares.
    """
    head = [Head("claim", numeric=False), Head("preference", numeric=False), Head("λ")]
    head += [
        Head("verdict", numeric=False),
        Head("effect"),
        Head("95 % interval"),
        Head("p"),
        Head("least contrast, or why", numeric=False),
    ]
    head += [Head("items"), Head("seeds")]
    if beside is not None:
        head.append(Head("in the paper's own averages", numeric=False))
    lines = []
    for test, theirs in zip(tests, beside or [{}] * len(tests), strict=True):
        line = _claim(test)
        if beside is not None:
            text = "\n".join(f"{base}: {100 * value:+.2f}" for base, value in theirs.items())
            line = replace(line, entries=[*line.entries, Entry(text)])
        lines.append(line)
    return Table(head, [Section("", lines)])


def _claim(test: Mapping[str, Any]) -> Line:
    verdict, untested = str(test["verdict"]), test["p_corrected"] is None
    why = "; ".join(filter(None, (test["contrast"], test["why"] if untested else None)))
    objectives = str(test["preference"] or "").split(", ")
    entries = [
        Entry(str(test["claim"])),
        Entry(", ".join(map(objective_title, objectives))),
        Entry(short(test["lambda"])),
        Entry(verdict, strong=True, tone=TONES.get(verdict, "open")),
        *map(Entry, (signed(test["effect"]), interval(test["low"], test["high"]))),
        *map(Entry, (p_value(test["p_corrected"]), why)),
        *(Entry(plain_text(test[name] or None)) for name in ("num_items", "num_seeds")),
    ]
    what = f"{test['says']} Paper: {test['source']}."
    details = [("what was tested", what), ("why", test["why"]), ("evaluations", test["evaluate_keys"])]
    return Line(entries, [(name, str(text)) for name, text in details if text])


# --- comparisons -------------------------------------------------------------------------------------


def comparisons_table(answers: Sequence[Mapping[str, Any]], caption: str = "") -> Table:
    """Either side's mean and their difference with its 95 % interval, and p after Holm's correction."""
    head = [Head("question", numeric=False), Head("column", numeric=False)]
    head += [Head(text) for text in ("A", "B", "A - B", "95 % interval", "p")]
    lines = []
    for row in answers:
        sides = [DASH if row[side] is None else f"{row[side]:.3g}" for side in ("left", "right")]
        apart = [signed(row["difference"], ".3g"), interval(row["low"], row["high"], ".3g")]
        name = str(row["column"]).replace("_", " ")
        lines.append([str(row["question"]), name, *sides, *apart, p_value(row["p_corrected"])])
    return plain_table(head, lines, caption=caption)
