"""The report in the terminal: the table, the claims, a comparison."""

import sys
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.table import Table

from paft.report.compare import Comparison
from paft.report.labels import Column, Row, Scope, blocks, labels, score_columns, section, short
from paft.report.statistics import Estimate

UNKNOWN = "; ? where nothing shows it: a task or subtask has one item, or nobody knows its items"


def console() -> Console:
    """A pipe or a log file has no width of its own."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)


# --- the table ---------------------------------------------------------------------------------------


def print_table(table: Sequence[Row], keys: Sequence[str] = (), *, page: Path | None = None) -> None:
    """Print the cells with these evaluate keys (all, if empty) beside their base, and where the page is."""
    out = console()
    for scope, block in blocks(table):
        wanted = [r for r in block if not keys or {*r["evaluate_keys"].split()} & {*keys}]
        if wanted:
            bases = [r for r in block if r["paradigm"] == "base" and r not in wanted]
            out.print(_terminal_table(scope, [*wanted, *bases]))
    if page is not None:
        out.print(f"Report: {page}", markup=False, soft_wrap=True)


def _terminal_table(scope: Scope, block: list[Row]) -> Table:
    found = score_columns(block)
    title = f"{scope.base} · {scope.evaluate}" + (f" · first {scope.limit} items only" if scope.limit else "")
    seeds = sorted({r["num_seeds"] for r in block if r["seed"] is not None})
    caption = "± 1 standard error over items" + (f" and {seeds[-1]} seeds" if seeds and seeds[-1] > 1 else "")
    if any(c.error(r) == "?" for c in found for r in block):
        caption += UNKNOWN
    table = Table(title=escape(title), title_justify="left", caption=caption, caption_justify="left")
    for name in ("method", "lambda", *(c.title for c in found), "SFT < 1e-5"):
        least = {"lambda": 6}.get(name)  # of a number that is cut nothing is left
        side: JustifyMethod = "left" if name == "method" else "right"
        table.add_column(escape(name), justify=side, no_wrap=True, min_width=least)
    best = [c.best(block) for c in found]
    named = zip(block, labels(block), strict=True)
    for heading, lines in groupby(named, key=lambda pair: section(pair[0])):
        table.add_section()
        table.add_row(f"[dim]{escape(heading)}[/dim]")
        for row, label in lines:
            table.add_row(*_terminal_row(row, label, zip(found, best, strict=True)))
    return table


def _terminal_row(row: Row, label: str, columns: Iterable[tuple[Column, float | None]]) -> list[str]:
    share = row["sft_sparsity"]
    scores = [_terminal_score(column, row, best) for column, best in columns]
    return [escape(label), short(row["lambda"]), *scores, "–" if share is None else f"{100 * share:.1f} %"]


def _terminal_score(column: Column, row: Row, best: float | None) -> str:
    value = column.value(row)
    error = f" [dim]± {found}[/dim]" if (found := column.error(row)) else ""
    text = f"[bold]{column.text(value)}[/bold]" if value is not None and value == best else column.text(value)
    return text + error


# --- a comparison ------------------------------------------------------------------------------------


def print_comparison(found: Comparison, left: str, right: str) -> None:
    """Differences A - B by column, then pair by pair, then what a reader must know of them."""
    out = console()
    count = len(found.pairs)
    title = f"A = {left} · B = {right}" + (f" · mean over {count} pairs of cells" if count > 1 else "")
    table = Table(title=escape(title), title_justify="left", caption=_caption(found), caption_justify="left")
    for name in ("column", "A", "B", "A - B", "95 % interval", "p, corrected", "items", "seeds"):
        table.add_column(name, justify="left" if name == "column" else "right", no_wrap=True)
    for d in found.differences:
        p = "–" if d.corrected is None else f"{d.corrected:.2g}"
        values = [_value(d.column, d.left), _value(d.column, d.right), _signed(d.column, d.difference.value)]
        sizes = [str(d.difference.num_items or "–"), str(d.difference.num_seeds)]
        table.add_row(escape(d.column.title), *values, _interval(d.column, d.difference), p, *sizes)
    out.print(table)
    if count > 1:
        out.print(_pairs(found))
    for name, (mine, theirs) in found.also_differ.items():
        out.print(f"A and B also differ in {name}: {mine} against {theirs}", markup=False, soft_wrap=True)
    for name in found.alone:
        out.print(f"without a partner, left out: {name}", markup=False, soft_wrap=True)


def print_answers(found: Sequence[Row]) -> None:
    """The answers to a list of questions, and why some have none."""
    out = console()
    caption = "paired, over items and seeds; p by Holm over the table"
    table = Table(caption=caption, caption_justify="left")
    for name in ("question", "column", "A", "B", "A - B", "95 % interval", "p, corrected"):
        table.add_column(name, justify="left" if name in ("question", "column") else "right")
    for row in found:
        numbers = [_number(row[name]) for name in ("left", "right", "difference")]
        interval = "–" if row["low"] is None else f"{row['low']:+.3g} to {row['high']:+.3g}"
        table.add_row(
            escape(row["question"]), escape(row["column"]), *numbers, interval, _number(row["p_corrected"])
        )
    out.print(table)
    for row in found:
        if row["why"]:
            out.print(f"{row['question']}, {row['column']}: {row['why']}", markup=False, soft_wrap=True)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _caption(found: Comparison) -> str:
    seeds = min(d.difference.num_seeds for d in found.differences)
    over = (
        "items and seeds"
        if seeds > 1
        else "items only: with one seed in common nothing is said of other trainings"
    )
    unknown = UNKNOWN if any(d.difference.stderr is None for d in found.differences) else ""
    return f"paired, over {over}; p by Holm over the rows of this table{unknown}"


def _pairs(found: Comparison) -> Table:
    table = Table(title="A - B, pair by pair", title_justify="left")
    table.add_column("pair", no_wrap=True)
    for column in found.columns:
        table.add_column(escape(column.title), justify="right", no_wrap=True)
    for pair in found.pairs:
        texts = []
        for column in found.columns:
            e = pair.differences.get(column.name)
            texts.append(
                "–" if e is None else f"{_signed(column, e.value)} [dim]{_interval(column, e)}[/dim]"
            )
        table.add_row(escape(pair.label), *texts)
    return table


def _value(column: Column, e: Estimate) -> str:
    error = "?" if e.stderr is None else column.text(column.scaled(e.stderr))
    return f"{column.text(column.scaled(e.value))} [dim]± {error}[/dim]"


def _signed(column: Column, value: float | None) -> str:
    text = column.text(column.scaled(value))
    return text if value is None or value < 0 else f"+{text}"


def _interval(column: Column, e: Estimate) -> str:
    return "–" if e.low is None else f"({_signed(column, e.low)} … {_signed(column, e.high)})"
