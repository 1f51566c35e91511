"""Figures of scores: against lambda, and method by method. Error bars are one standard error."""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby, product
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paft.report.columns import Column, score_columns
from paft.report.labels import has_dense, labels, method, without_penalty
from paft.report.norms import TITLES as NORMS
from paft.report.norms import norms
from paft.report.numbers import short
from paft.report.row import Row
from paft.report.style import (
    BLACK,
    MARKERS,
    add_legend,
    clean,
    merge_colour,
    new_figure,
    new_panels,
    paradigm_colour,
    subscript,
)

MOST_BARS = 40
MOST_LINES = 8
LEVELS = {"sft": "--", "preference": "-.", "base": ":"}
"""How what is not merged is drawn: paradigm -> dashes of its level line."""


def scores_by_lambda(rows: Sequence[Row], columns: Sequence[str] | None = None) -> Figure:
    """One panel per score column: score against lambda, a line per merge; baselines as dashed levels.

    lambda has a log axis with 0 as a tick of its own at the left. `columns` limits the panels. Of more than
    8 variants, the best of each method and preference objective by its highest average. Merges at own norm and at
    equal norm stand side by side, on one scale.
    """
    scores = [c for c in score_columns(rows) if columns is None or c.name in columns]
    merged = [r for r in rows if r.merged]
    places = lambda_places({r.weight or 0.0 for r in merged})
    sides = norms(merged) or [""]
    series = {side: _series([r for r in merged if r.norm == side]) for side in sides}
    note = max(note for _, note in series.values())
    several = len(sides) if len(sides) > 1 else None
    title = f"Score of the merged model by lambda{note}, ± 1 standard error"
    figure, panels = new_panels(len(scores) * len(sides), title, columns=several)
    for (column, side), ax in zip(product(scores, sides), panels, strict=True):
        for line in series[side][0]:
            _line(ax, column, line, places)
        _levels(ax, rows, column)
        _lambda_axis(ax, places)
        named = f"{column.title}, {NORMS[side]}" if several else column.title
        ax.set_title(subscript(named), fontsize=11)
        ax.set_ylabel("score (%)" if column.percent else "score")
        clean(ax, "y")
    for first in range(0, len(panels), len(sides)):
        _on_one_scale(panels[first : first + len(sides)])
    add_legend(figure, panels)
    return figure


def _on_one_scale(panels: Sequence[Axes]) -> None:
    """The same vertical axis for panels that are to be compared."""
    lows, highs = zip(*(ax.get_ylim() for ax in panels), strict=True)
    for ax in panels:
        ax.set_ylim(min(lows), max(highs))


def lambda_places(weights: set[float]) -> dict[float, float]:
    """Where each lambda stands: its log10, and 0 a step of at least half a decade left of the smallest."""
    logs = {w: math.log10(w) for w in sorted(weights) if w > 0}
    span = max(logs.values()) - min(logs.values()) if logs else 0.0
    zero = {0.0: min(logs.values(), default=0.0) - max(0.5, 0.3 * span)} if 0 in weights else {}
    return zero | logs


class Series(NamedTuple):
    """One line over lambda: its look, and how far it stands aside (in shares of the axis)."""

    label: str
    rows: list[Row]
    colour: str
    marker: str
    aside: float


def _series(merged: Sequence[Row]) -> tuple[list[Series], str]:
    lines = _lines(merged)
    shown, note = list(lines), ""
    if len(lines) > MOST_LINES:
        best: dict[tuple[str, str], str] = {}
        for label in sorted(lines, key=lambda name: max(r["average"] or 0.0 for r in lines[name])):
            best[lines[label][0].merge, lines[label][0].preference] = label
        shown, note = [label for label in lines if label in best.values()], " (best variants)"
    series = []
    for number, label in enumerate(shown):
        colour = merge_colour(lines[label][0].merge)
        # neighbours stand a little apart, so that equal scores do not hide each other's error bars
        aside = 0.06 * ((number + 0.5) / len(shown) - 0.5)
        series.append(Series(label, lines[label], colour, MARKERS[number % len(MARKERS)], aside))
    return series, note


def _lines(merged: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each line by its label. One of lambda = 0, where kinds of penalty are one, is on the lines of all."""
    lines: dict[str, list[Row]] = {}
    named = list(zip(merged, labels(merged), strict=True))
    for row, label in sorted(named, key=lambda pair: pair[0].weight == 0):
        of_penalties = [name for name in lines if row.weight == 0 and without_penalty(name) == label]
        for name in of_penalties or [label]:
            lines.setdefault(name, []).append(row)
    return lines


def _line(ax: Axes, column: Column, line: Series, places: Mapping[float, float]) -> None:
    scored = [(places[r.weight or 0.0], column.value(r), column.bar(r)) for r in line.rows]
    points = sorted((x, y, error) for x, y, error in scored if y is not None)
    aside = line.aside * (max(places.values()) - min(places.values()) or 2.0)
    xs, ys = [x + aside for x, _, _ in points], [y for _, y, _ in points]
    errors = [error for *_, error in points]
    ax.errorbar(xs, ys, yerr=errors, fmt="none", ecolor=line.colour, elinewidth=1, capsize=2)
    ax.plot(xs, ys, label=line.label, color=line.colour, marker=line.marker, markersize=5, linewidth=1.6)


def _levels(ax: Axes, rows: Sequence[Row], column: Column) -> None:
    """The base, the first preference run of each objective, and plain SFT (else the least sparse)."""
    for (paradigm, _), own in groupby(rows, key=lambda r: (r.paradigm, r.preference)):
        scored = [r for r in own if column.value(r) is not None]
        if scored and paradigm in LEVELS:
            row = min(scored, key=lambda r: r.weight or 0.0)
            label = "base" if paradigm == "base" else method(row)
            colour = paradigm_colour(row) if paradigm == "preference" else BLACK
            ax.axhline(
                column.value(row) or 0.0, label=label, color=colour, linestyle=LEVELS[paradigm], linewidth=1.2
            )


def _lambda_axis(ax: Axes, places: Mapping[float, float]) -> None:
    ax.set_xlabel("lambda (L1 weight of SFT)")
    ax.set_xticks(list(places.values()), [short(w) for w in places], rotation=60 if len(places) > 7 else 0)
    if places:
        low, high = min(places.values()), max(places.values())
        margin = 0.12 * (high - low) or 0.5
        ax.set_xlim(low - margin, high + margin)


def scores_by_method(rows: Sequence[Row]) -> Figure:
    """A bar per row and score column, in table order, the best of a column in bold.

    Of more than 40 merged rows, the 40 best by average.
    """
    shown, note = _most(rows)
    scores = score_columns(shown)
    height = 1.5 + 0.25 * max(3, len(shown))
    figure = new_figure(
        2.4 + 1.9 * max(2, len(scores)), height, f"Score of every method{note}, ± 1 standard error"
    )
    panels = list(figure.subplots(1, max(1, len(scores)), sharey=True, squeeze=False).flat)
    for column, ax in zip(scores, panels, strict=False):
        _bars(ax, shown, column, column.best(rows))
    names = [_bar_name(r, label) for r, label in zip(shown, labels(shown), strict=True)]
    panels[0].set_yticks(range(len(shown)), names)
    panels[0].set_ylim(len(shown) - 0.4, -0.6)
    for row in shown:
        panels[0].barh(0, 0, color=paradigm_colour(row), alpha=_solid(row), label=_group(row))
    add_legend(figure, panels[:1])
    return figure


def _most(rows: Sequence[Row]) -> tuple[list[Row], str]:
    merged = [r for r in rows if r.merged]
    if len(merged) <= MOST_BARS:
        return list(rows), ""
    best = sorted(merged, key=lambda r: -(r.get("average") or 0.0))[:MOST_BARS]
    keys = {r.evaluate_key for r in best}
    shown = [r for r in rows if not r.merged or r.evaluate_key in keys]
    return shown, f" ({MOST_BARS} best merges by average)"


def _bar_name(row: Row, label: str) -> str:
    return subscript(f"{label}, λ={short(row.weight)}" if row.weight else label)


def _group(row: Row) -> str:
    if row.merged:
        return "PAFT" if row.weight else "Parallel with λ=0"
    return "Sequential" if row.trained_first else method(row).removesuffix("-alone")


def _bars(ax: Axes, rows: Sequence[Row], column: Column, best: float | None) -> None:
    scored = [(place, r, v) for place, r in enumerate(rows) if (v := column.value(r)) is not None]
    largest = max(abs(v) + (column.stderr(r) or 0.0) for _, r, v in scored) or 1.0
    for place, row, value in scored:
        stderr = column.stderr(row) or 0.0
        ax.barh(place, value, height=0.72, color=paradigm_colour(row), alpha=_solid(row))
        ax.errorbar(value, place, xerr=column.bar(row), color=BLACK, elinewidth=1)
        weight = "bold" if value == best else "normal"
        end = max(value, 0.0) + stderr + 0.03 * largest
        ax.text(end, place, column.text(value), va="center", fontsize=8, weight=weight)
    ax.set_xlim(min(0.0, *(v for *_, v in scored), 0.0), 1.35 * largest)
    ax.set_title(subscript(column.title), fontsize=11)
    ax.set_xlabel("score (%)" if column.percent else "score")
    clean(ax, "x")


def _solid(row: Row) -> float:
    """Dense SFT is drawn paler than sparse SFT."""
    return 0.45 if has_dense([row]) else 0.9
