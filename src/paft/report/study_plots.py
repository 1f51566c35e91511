"""Figures over a whole study: lambda x merge as a heat map, and two skills against what is retained."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from paft.report.columns import Column, score_columns
from paft.report.labels import method
from paft.report.names import merge_place, merge_title, objective_place, objective_title
from paft.report.norms import TITLES as NORMS
from paft.report.norms import norms
from paft.report.numbers import short
from paft.report.representatives import representatives
from paft.report.row import Row
from paft.report.style import (
    BLACK,
    GREY,
    add_legend,
    clean,
    merge_colour,
    merge_marker,
    new_figure,
    new_panels,
    objective_colour,
)

PARETO = (
    ("gsm8k_choice", "hh_margin", "mmlu_dev_bits"),
    ("tool_call", "honesty", "mmlu_dev_bits"),
    ("tool_call", "honesty", "mmlu_dev"),
)
"""Columns of known evaluations: the SFT branch's skill, the preference branch's, and what should be retained."""
EQUAL = 0.8
"""Where on the scale of colours cells stand that are all equal: a light one, for dark numbers."""


# --- lambda x merge ----------------------------------------------------------------------------------


def heat_map(rows: Sequence[Row], name: str = "average") -> Figure | None:
    """A panel for each preference objective: one score by lambda and merge method; None below two cells.

    Merges at own norm and at equal norm have panels side by side.
    """
    sides = norms(rows)
    merged = [r for side in sides for r in representatives(rows, side) if r.merged]
    scores = [c for c in score_columns(merged) if c.name == name]
    if not scores or len({(r.weight, r.merge) for r in merged}) < 2:
        return None
    (column,) = scores
    objectives = sorted({r.preference for r in merged}, key=lambda name: (objective_place(name), name))
    methods = sorted({r.merge for r in merged}, key=lambda name: (merge_place(name), name))
    weights = sorted({r.weight or 0.0 for r in merged})
    width, height = 2.6 + 1.25 * len(weights), 1.7 + 0.55 * len(methods)
    title = f"{column.title.capitalize()} of the merged model, ± 1 standard error"
    places = [(objective, side) for objective in objectives for side in sides]
    figure = new_figure(max(6.5, width * len(places)), height, title)
    panels = list(figure.subplots(1, len(places), sharey=True, squeeze=False).flat)
    values = [v for r in merged if (v := column.value(r)) is not None]
    for ax, (objective, side) in zip(panels, places, strict=True):
        own = [r for r in merged if (r.preference, r.norm) == (objective, side)]
        _cells(ax, own, column, methods, weights, values)
        at = f", {NORMS[side]}" if len(sides) > 1 else ""
        ax.set_title(f"SFT + {objective_title(objective)}{at}", fontsize=11)
    panels[0].set_yticks(range(len(methods)), [*map(merge_title, methods)])
    return figure


def _cells(
    ax: Axes,
    rows: Sequence[Row],
    column: Column,
    methods: Sequence[str],
    weights: Sequence[float],
    every: Sequence[float],
) -> None:
    grid = np.full((len(methods), len(weights)), np.nan)
    shades = Normalize(min(every), max(every))
    for row in rows:
        value = column.value(row)
        if value is None:
            continue
        y, x = methods.index(row.merge), list(weights).index(row.weight or 0.0)
        grid[y, x] = value
        text = column.written(row).replace(" ± ", "\n± ")
        ax.text(x, y, text, ha="center", va="center", fontsize=8.5, color=readable(_shade(shades, value)))
    ax.imshow(_shade(shades, grid), aspect="auto")
    ax.set_xticks(range(len(weights)), [short(w) for w in weights])
    ax.set_xlabel("lambda (L1 weight of SFT)")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)


def _shade(shades: Normalize, values: Any) -> Any:
    """viridis; where all values are equal, one light shade; what is no number stays white."""
    place = np.asarray(
        shades(values) if shades.vmin != shades.vmax else np.where(np.isnan(values), np.nan, EQUAL)
    )
    return np.where(np.isnan(place)[..., None], 1.0, colormaps["viridis"](place))


def readable(colour: Sequence[float]) -> str:
    """Black or white text on this colour, whichever stands out: relative luminance as WCAG 2 weighs it, coarsely."""
    red, green, blue = colour[:3]
    return BLACK if 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 > 0.18 else "white"


# --- two skills against retention --------------------------------------------------------------------


def pareto(rows: Sequence[Row], names: Sequence[str] | None = None) -> Figure | None:
    """Each skill against retention, and the skills against each other; a point a cell, grey the Pareto front.

    Ringed cells are those that no other beats in all three at once. `names` gives the columns (skill, skill,
    retained), by default those of `PARETO`; None where the rows do not have them.
    """
    by_name = {c.name: c for c in score_columns(rows)}
    known = [names] if names else [n for n in PARETO if set(n) <= set(by_name)]
    if not known or not set(known[0]) <= set(by_name):
        return None
    first, second, kept = (by_name[n] for n in known[0])
    scored = [r for r in rows if all(c.value(r) is not None for c in (first, second, kept))]
    if len(scored) < 3:
        return None
    ringed = front([[_upward(c, r) for c in (first, second, kept)] for r in scored])
    figure, panels = new_panels(
        3, "Two skills and what is retained, every cell, ± 1 standard error", width=4.2
    )
    figure.set_figheight(4.6)
    for ax, (x, y) in zip(panels, ((kept, first), (kept, second), (first, second)), strict=True):
        _points(ax, scored, x, y, ringed)
        ax.set_xlabel(_axis(x))
        ax.set_ylabel(_axis(y))
        clean(ax, "y")
    add_legend(figure, panels)
    return figure


def front(points: Sequence[Sequence[float]]) -> list[bool]:
    """Which points no other is at least as good as in everything and better in something."""
    table = np.array(points)
    beaten = [((table >= p).all(1) & (table > p).any(1)).any() for p in table]
    return [not b for b in beaten]


def _points(ax: Axes, rows: Sequence[Row], x: Column, y: Column, ringed: Sequence[bool]) -> None:
    places = [(x.value(r) or 0.0, y.value(r) or 0.0) for r in rows]
    for row, (left, up), ring in zip(rows, places, ringed, strict=True):
        colour, marker, label = _look(row)
        ax.errorbar(
            left,
            up,
            xerr=x.bar(row),
            yerr=y.bar(row),
            ecolor=colour,
            elinewidth=0.6,
            alpha=0.35,
        )
        fill = "none" if row.weight == 0 else "full"
        ax.plot(left, up, marker, color=colour, markersize=6, label=label, fillstyle=fill, alpha=0.85)
        if ring:
            ax.plot(
                left, up, "o", color=BLACK, fillstyle="none", markersize=10, label="on the front of all three"
            )
    best = front([[_upward(x, r), _upward(y, r)] for r in rows])
    line = sorted(p for p, b in zip(places, best, strict=True) if b)
    ax.plot([p[0] for p in line], [p[1] for p in line], color=GREY, linewidth=1, linestyle="--", zorder=0)
    # errors over items are common to all cells and may be many times what cells differ by
    ax.set_xlim(_around([left for left, _ in places]))
    ax.set_ylim(_around([up for _, up in places]))


def _around(values: Sequence[float]) -> tuple[float, float]:
    margin = 0.12 * (max(values) - min(values)) or 1.0
    return min(values) - margin, max(values) + margin


def _look(row: Row) -> tuple[str, str, str]:
    """Colour, marker and legend entry: merges in the colour of their method, preference alone of its objective."""
    dense = ", λ=0" if row.weight == 0 else ""
    match row.paradigm:
        case "parallel":
            return merge_colour(row.merge), merge_marker(row.merge), method(row) + dense
        case "sequential":
            return BLACK, "*", "sequential" + dense
        case "preference_first":
            return BLACK, "h", "preference first" + dense
        case "expo":
            return BLACK, "d", "ExPO" + dense
        case "joint":
            return BLACK, "P", "joint"
        case "sft":
            return BLACK, "<", "SFT alone" + dense
        case "preference":
            return objective_colour(row.preference), ">", f"{objective_title(row.preference)} alone"
    return BLACK, "X", "base"


def _upward(column: Column, row: Row) -> float:
    value = column.value(row) or 0.0
    return value if column.higher_is_better else -value


def _axis(column: Column) -> str:
    return f"{column.title} (%)" if column.percent else column.title
