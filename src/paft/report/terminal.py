"""The report in the terminal: the tables, a comparison, a list of answers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from paft.report.backends import mixed
from paft.report.changes import Changed, summary
from paft.report.columns import Column
from paft.report.compare import Comparison
from paft.report.norms import one_sided
from paft.report.numbers import DASH, interval, p_value, signed
from paft.report.render import console, show_table
from paft.report.row import Row
from paft.report.scope import Scope, blocks, scope_of, title
from paft.report.statistics import Estimate
from paft.report.stored import not_stored
from paft.report.tables import (
    Entry,
    Head,
    Line,
    Section,
    Table,
    cells_table,
    comparisons_table,
    plain_table,
    without,
)

TAIL = 160
"""Characters of a text that is shown in part."""
UNKNOWN = "; ? where nothing shows it: a task or subtask has one item, or nobody knows its items"


# --- the table ---------------------------------------------------------------------------------------


def print_table(table: Sequence[Row], *, store: Path | None = None, page: Path | None = None) -> None:
    """Print these cells by scope, where their models are in the store, and where the page is."""
    print_blocks(blocks(table), store=store, page=page)


def print_run(
    own: Sequence[tuple[Scope, list[Row]]],
    *,
    others: Sequence[Row],
    store: Path,
    page: Path,
    everything: str,
) -> None:
    """Print what `Report.of_run` gives: the cells of a run alone, and which command shows the store's `others`."""
    print_blocks(own, beside=others, store=store)
    out = console()
    if others:
        more = f"{len(others)} more evaluation{'s' * (len(others) > 1)}"
        _say(out, f"{store} holds {more}: {everything} shows all")
    _say(out, f"Report: {page}")


def print_blocks(
    scopes: Sequence[tuple[Scope, list[Row]]],
    *,
    beside: Sequence[Row] = (),
    store: Path | None = None,
    page: Path | None = None,
) -> None:
    out = console()
    for scope, block in scopes:
        alike = [r for r in beside if scope_of(r) == scope]
        show_table(out, _cells(scope, block))
        for sentence in (*mixed(block), *not_stored(block), *one_sided(block, alike)):
            _say(out, sentence)
        if store is not None and (where := _models(block, store)):
            _say(out, where)
    if page is not None:
        _say(out, f"Report: {page}")


def _cells(scope: Scope, block: list[Row]) -> Table:
    whole = cells_table(block)
    seeds = max((r.num_seeds for r in block), default=1)
    caption = "± 1 standard error over items" + (f" and {seeds} seeds" if seeds > 1 else "")
    if any(entry.error == "?" for line in whole.lines for entry in line.entries):
        caption += UNKNOWN
    hidden = ["preference < 1e-5", *(["seeds"] if seeds == 1 else [])]
    caption = "\n".join(filter(None, (caption, whole.caption)))
    return replace(without(whole, *hidden), title=title(scope, block), caption=caption)


def _models(block: Sequence[Row], store: Path) -> str:
    """Where the merged models of a table's rows are."""
    keys = [r.key("merge") for r in block if r.key("merge")]
    if not keys:
        return ""
    if len(keys) == 1 and all(r.num_seeds == 1 for r in block):
        return f"Model: {store / 'merge' / keys[0]}"
    return f"Models: {store / 'merge'}/<merge_key>, by row in results.csv and on the page"


def _say(out: Console, text: str) -> None:
    out.print(text, markup=False, soft_wrap=True)


# --- a comparison ------------------------------------------------------------------------------------


def print_comparison(comparison: Comparison, left: str, right: str) -> None:
    """Differences A - B by column, then pair by pair, then what a reader must know of them."""
    out = console()
    show_table(out, _differences(comparison, left, right))
    if len(comparison.pairs) > 1:
        show_table(out, _pairs(comparison))
    for name, (mine, theirs) in comparison.also_differ.items():
        _say(out, f"A and B also differ in {name}: {mine} against {theirs}")
    for sentence in mixed(r for p in comparison.pairs for r in (*p.left, *p.right)):
        _say(out, sentence)
    for name in comparison.alone:
        _say(out, f"without a partner, left out: {name}")


def _differences(comparison: Comparison, left: str, right: str) -> Table:
    count = len(comparison.pairs)
    heads = ("A", "B", "A - B", "95 % interval", "p, corrected", "items", "seeds")
    lines = []
    for d in comparison.differences:
        sizes = [str(d.difference.num_items or DASH), str(d.difference.num_seeds)]
        texts = [
            _signed(d.column, d.difference),
            _interval(d.column, d.difference),
            p_value(d.corrected),
            *sizes,
        ]
        sides = [_value(d.column, d.left), _value(d.column, d.right)]
        lines.append(Line([Entry(d.column.title), *sides, *map(Entry, texts)]))
    return Table(
        [Head("column", numeric=False), *map(Head, heads)],
        [Section("", lines)],
        f"A = {left} · B = {right}" + (f" · mean over {count} pairs of cells" if count > 1 else ""),
        _caption(comparison),
    )


def _caption(comparison: Comparison) -> str:
    several = min(d.difference.num_seeds for d in comparison.differences) > 1
    alone = "items only: with one seed in common nothing is said of other trainings"
    unknown = UNKNOWN if any(d.difference.stderr is None for d in comparison.differences) else ""
    over = "items and seeds" if several else alone
    return f"paired, over {over}; p by Holm over the rows of this table{unknown}"


def _pairs(comparison: Comparison) -> Table:
    lines = []
    for pair in comparison.pairs:
        texts = [pair.label]
        for column in comparison.columns:
            e = pair.differences.get(column.name)
            texts.append(DASH if e is None else f"{_signed(column, e)} ({_interval(column, e)})")
        lines.append(texts)
    head = [Head("pair", numeric=False), *(Head(c.title) for c in comparison.columns)]
    return plain_table(head, lines, title="A - B, pair by pair")


def _value(column: Column, e: Estimate) -> Entry:
    error = "?" if e.stderr is None else column.text(column.scaled(e.stderr))
    return Entry(column.text(column.scaled(e.value)), error)


def _signed(column: Column, e: Estimate) -> str:
    return signed(column.scaled(e.value), column.digits)


def _interval(column: Column, e: Estimate) -> str:
    return interval(column.scaled(e.low), column.scaled(e.high), column.digits)


# --- items that changed ------------------------------------------------------------------------------


def print_changes(changed: Sequence[Changed], left: str, right: str, *, show: int, page: Path) -> None:
    """How many items changed, the first of each column with both answers, and the page that has all."""
    out = console()
    show_table(out, summary(changed, left, right))
    for sentence in changed[0].cautions if changed else ():
        _say(out, sentence)
    for part in changed:
        for change in part.changes[:show]:
            _say(out, f"\n{part.column.title}, item {change.item}: {change.better} is better")
            if change.prompt:
                _say(out, f"  ...{_line(change.prompt[-TAIL:])}")
            if change.expected:
                _say(out, f"  expected: {_line(change.expected[:TAIL])}")
            for side, answer, worth in change.sides:
                _say(out, f"  {side} ({worth}): {_line(answer[:TAIL]) or DASH}")
    _say(out, f"\nAll of them: {page}")


def _line(text: str) -> str:
    return " ".join(text.split())


# --- a list of answers -------------------------------------------------------------------------------


def print_answers(answers: Sequence[Mapping[str, Any]]) -> None:
    """The answers to a list of questions, and why some have none."""
    out = console()
    caption = "paired, over items and seeds; p by Holm over the table"
    show_table(out, comparisons_table(answers, caption))
    for row in answers:
        if row["why"]:
            _say(out, f"{row['question']}, {row['column']}: {row['why']}")
