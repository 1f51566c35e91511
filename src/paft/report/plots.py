"""The figures of the report: plain rows and records in, a matplotlib Figure out.

Error bars are one standard error.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from paft.report.labels import Column, Row, labels, method, score_columns, section, short
from paft.report.style import (
    BLACK,
    BLUE,
    GREY,
    MARKERS,
    MERGE_COLOURS,
    PARADIGM_COLOURS,
    RED,
    add_legend,
    clean,
    new_figure,
    new_panels,
    subscript,
)

MOST_BARS = 40
CURVES = {
    "loss": "train/loss",
    "L1 part of the loss": "train/l1",
    "share of |delta| < 1e-5": "train/sparsity",
    "reward of chosen": "train/chosen_rewards",
    "reward of rejected": "train/rejected_rewards",
    "share of pairs ranked right": "train/accuracy",
}
"""Panel -> column of history.csv."""


@dataclass(frozen=True)
class Adapter:
    """One finished adapter: `share` of |delta| < 1e-5 and Hoyer sparsity, means over layers, in [0, 1]."""

    label: str
    branch: str
    share: float | None
    hoyer: float | None


# --- scores ------------------------------------------------------------------------------------------


def scores_by_lambda(rows: Sequence[Row], columns: Sequence[str] | None = None) -> Figure:
    """One panel per score column: score against lambda, a line per merge; baselines as dashed levels.

    lambda has a log axis with 0 as a tick of its own at the left. `columns` limits the panels.
    """
    found = [c for c in score_columns(rows) if columns is None or c.name in columns]
    merged = [r for r in rows if r["paradigm"] == "parallel"]
    places = lambda_places({r["lambda"] for r in merged})
    figure, panels = new_panels(len(found), "Score of the merged model by lambda, ± 1 standard error")
    for column, ax in zip(found, panels, strict=True):
        for number, (label, line) in enumerate(_series(merged).items()):
            _line(ax, column, label, line, places, number)
        _levels(ax, rows, column)
        _lambda_axis(ax, places)
        ax.set_title(subscript(column.title), fontsize=11)
        ax.set_ylabel("score (%)" if column.percent else "score")
        clean(ax, "y")
    add_legend(figure, panels)
    return figure


def lambda_places(weights: set[float]) -> dict[float, float]:
    """Where each lambda stands: its log10, and 0 a step of at least half a decade left of the smallest."""
    logs = {w: math.log10(w) for w in sorted(weights) if w > 0}
    span = max(logs.values()) - min(logs.values()) if logs else 0.0
    zero = {0.0: min(logs.values(), default=0.0) - max(0.5, 0.3 * span)} if 0 in weights else {}
    return zero | logs


def _series(merged: Sequence[Row]) -> dict[str, list[Row]]:
    lines: dict[str, list[Row]] = {}
    for row, label in zip(merged, labels(merged), strict=True):
        lines.setdefault(label, []).append(row)
    return lines


def _line(
    ax: Axes, column: Column, label: str, line: Sequence[Row], places: Mapping[float, float], number: int
) -> None:
    points = sorted(
        (places[r["lambda"]], v, column.stderr(r) or 0.0) for r in line if (v := column.value(r)) is not None
    )
    # neighbours stand a little apart, so that equal scores do not hide each other's error bars
    aside = 0.012 * (max(places.values()) - min(places.values()) or 2.0) * (number - 2)
    xs, ys = [x + aside for x, _, _ in points], [y for _, y, _ in points]
    colour, marker = MERGE_COLOURS.get(line[0]["merge"], GREY), MARKERS[number % len(MARKERS)]
    ax.errorbar(xs, ys, yerr=[e for *_, e in points], fmt="none", ecolor=colour, elinewidth=1, capsize=2)
    ax.plot(xs, ys, label=label, color=colour, marker=marker, markersize=5, linewidth=1.6)


def _levels(ax: Axes, rows: Sequence[Row], column: Column) -> None:
    """The base, the first preference run, and plain SFT (else the least sparse)."""
    for paradigm, dashes in (("sft", "--"), ("preference", "-."), ("base", ":")):
        scored = [r for r in rows if r["paradigm"] == paradigm and column.value(r) is not None]
        if scored:
            row = min(scored, key=lambda r: r["lambda"] or 0.0)
            label = "base" if paradigm == "base" else method(row)
            ax.axhline(column.value(row) or 0.0, label=label, color=BLACK, linestyle=dashes, linewidth=1.2)


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
    found = score_columns(shown)
    height = 1.5 + 0.25 * max(3, len(shown))
    figure = new_figure(
        2.4 + 1.9 * max(2, len(found)), height, f"Score of every method{note}, ± 1 standard error"
    )
    panels = list(figure.subplots(1, max(1, len(found)), sharey=True, squeeze=False).flat)
    for column, ax in zip(found, panels, strict=False):
        _bars(ax, shown, column)
    names = [_bar_name(r, label) for r, label in zip(shown, labels(shown), strict=True)]
    panels[0].set_yticks(range(len(shown)), names)
    panels[0].set_ylim(len(shown) - 0.4, -0.6)
    for row in shown:
        colour = PARADIGM_COLOURS[row["paradigm"]]
        panels[0].barh(0, 0, color=colour, alpha=_solid(row), label=_group(row))
    add_legend(figure, panels[:1])
    return figure


def _most(rows: Sequence[Row]) -> tuple[list[Row], str]:
    merged = [r for r in rows if r["paradigm"] == "parallel"]
    if len(merged) <= MOST_BARS:
        return list(rows), ""
    best = sorted(merged, key=lambda r: -(r.get("average") or 0.0))[:MOST_BARS]
    kept = {r["evaluate_key"] for r in best}
    shown = [r for r in rows if r["paradigm"] != "parallel" or r["evaluate_key"] in kept]
    return shown, f" ({MOST_BARS} best merges by average)"


def _bar_name(row: Row, label: str) -> str:
    return subscript(f"{label}, λ={short(row['lambda'])}" if row["lambda"] else label)


def _group(row: Row) -> str:
    return (
        section(row) if row["paradigm"] in ("parallel", "sequential") else method(row).removesuffix("-alone")
    )


def _bars(ax: Axes, rows: Sequence[Row], column: Column) -> None:
    best = column.best(rows)
    scored = [(place, r, v) for place, r in enumerate(rows) if (v := column.value(r)) is not None]
    largest = max(abs(v) + (column.stderr(r) or 0.0) for _, r, v in scored) or 1.0
    for place, row, value in scored:
        stderr = column.stderr(row) or 0.0
        ax.barh(place, value, height=0.72, color=PARADIGM_COLOURS[row["paradigm"]], alpha=_solid(row))
        ax.errorbar(value, place, xerr=stderr, color=BLACK, elinewidth=1)
        weight = "bold" if value == best else "normal"
        end = max(value, 0.0) + stderr + 0.03 * largest
        ax.text(end, place, column.text(value), va="center", fontsize=8, weight=weight)
    ax.set_xlim(min(0.0, *(v for *_, v in scored), 0.0), 1.35 * largest)
    ax.set_title(subscript(column.title), fontsize=11)
    ax.set_xlabel("score (%)" if column.percent else "score")
    clean(ax, "x")


def _solid(row: Row) -> float:
    """Dense SFT is drawn paler than sparse SFT."""
    return 0.45 if row["paradigm"] in ("parallel", "sequential", "sft") and not row["lambda"] else 0.9


# --- deltas ------------------------------------------------------------------------------------------


def sparsity_bars(adapters: Sequence[Adapter]) -> Figure:
    """How sparse each adapter's delta is (the paper's Figure 2), beside a measure that ignores its scale."""
    figure = new_figure(9, 1.5 + 0.34 * max(2, len(adapters)), "Sparsity of the deltas, mean over layers")
    left, right = figure.subplots(1, 2, sharey=True)
    _shares(left, adapters, [a.share for a in adapters], "elements below 1e-5 (%)")
    _shares(right, adapters, [a.hoyer for a in adapters], "Hoyer sparsity × 100")
    left.set_yticks(range(len(adapters)), [subscript(a.label) for a in adapters])
    left.set_ylim(len(adapters) - 0.4, -0.6)
    return figure


def _shares(ax: Axes, adapters: Sequence[Adapter], values: Sequence[float | None], name: str) -> None:
    for place, (adapter, value) in enumerate(zip(adapters, values, strict=True)):
        if value is not None:
            ax.barh(
                place, 100 * value, height=0.7, color=BLUE if adapter.branch == "sft" else RED, alpha=0.85
            )
            ax.text(100 * value + 1.5, place, f"{100 * value:.1f}", va="center", fontsize=9)
    ax.set_xlim(0, 115)
    ax.set_xticks(range(0, 101, 20))
    ax.set_xlabel(name)
    clean(ax, "x")


def conflict_by_layer(reports: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Sign conflict and cosine of the SFT and preference deltas by layer, mean over a layer's modules.

    `reports` maps a label to a merge.json; tensors without a layer number in their name are left out.
    """
    figure, panels = new_panels(2, "How the SFT and the preference delta meet, by layer", width=4.6)
    axes = zip(panels, ("sign_conflict", "cosine"), ("opposite signs (% of elements)", "cosine"), strict=True)
    for ax, measure, name in axes:
        for (label, report), colour in zip(reports.items(), _shades(len(reports)), strict=True):
            means = by_layer(report.get("layers", {}), measure)
            values = [100 * v if measure == "sign_conflict" else v for v in means.values()]
            ax.plot(list(means), values, label=label, color=colour, marker="o", markersize=3, linewidth=1.5)
        ax.set_xlabel("layer")
        ax.set_ylabel(name)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        clean(ax, "y")
    panels[0].set_ylim(bottom=0)
    panels[1].axhline(0, color=GREY, linewidth=0.8)
    add_legend(figure, panels)
    return figure


def by_layer(tensors: Mapping[str, Mapping[str, Any]], measure: str) -> dict[int, float]:
    """Layer number -> mean of `measure` over the tensors of that layer."""
    layers: dict[int, list[float]] = {}
    for name, values in tensors.items():
        if (found := re.search(r"\.(\d+)\.", name)) and values.get(measure) is not None:
            layers.setdefault(int(found[1]), []).append(float(values[measure]))
    return {layer: sum(v) / len(v) for layer, v in sorted(layers.items())}


# --- training ----------------------------------------------------------------------------------------


def training_curves(histories: Mapping[str, pd.DataFrame], title: str = "Training") -> Figure:
    """The step logs (label -> history.csv): loss, its L1 part, sparsity, rewards, accuracy.

    A panel appears where a log has its column. Rewards of chosen and rejected stand apart, so that a chosen
    likelihood that falls with the rejected one shows.
    """
    found = {
        n: c for n, c in CURVES.items() if any(c in h and h[c].notna().any() for h in histories.values())
    }
    figure, panels = new_panels(len(found), title)
    for ax, (name, column) in zip(panels, found.items(), strict=True):
        for (label, history), colour in zip(histories.items(), _shades(len(histories)), strict=True):
            if column in history:
                curve = history[["step", column]].dropna()
                marker = "o" if len(curve) < 20 else None
                ax.plot(
                    curve["step"],
                    curve[column],
                    label=label,
                    color=colour,
                    linewidth=1.3,
                    marker=marker,
                    markersize=3,
                )
        ax.set_title(name, fontsize=11)
        ax.set_xlabel("optimizer step")
        clean(ax, "y")
    add_legend(figure, panels)
    return figure


def _shades(count: int) -> list[tuple[float, float, float, float]]:
    """Dark to light, in the order of the legend."""
    return [colormaps["viridis"](0.88 * i / max(1, count - 1)) for i in range(count)]
