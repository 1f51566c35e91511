"""Figures of deltas and trainings: records in, a matplotlib Figure out, None without anything to draw."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from paft.report.row import Measured
from paft.report.style import (
    BLACK,
    BLUE,
    GREY,
    add_legend,
    clean,
    new_figure,
    new_panels,
    objective_colour,
    subscript,
)

CURVES = {
    "loss": "train/loss",
    "L1 part of the loss": "train/l1",
    "share of |delta| < 1e-5": "train/sparsity",
    "reward of chosen": "train/chosen_rewards",
    "reward of rejected": "train/rejected_rewards",
    "share of pairs ranked right": "train/accuracy",
    "KL from the base": "train/kl",
}
"""Panel -> column of history.csv."""


@dataclass(frozen=True)
class Adapter:
    """One finished adapter: `share` of |delta| < 1e-5 and Hoyer sparsity, means over layers, errors over seeds."""

    label: str
    objective: str
    """Of preference training; empty of SFT."""
    share: Measured
    hoyer: Measured | None


# --- deltas ------------------------------------------------------------------------------------------


def sparsity_bars(adapters: Sequence[Adapter]) -> Figure | None:
    """How sparse each adapter's delta is (the paper's Figure 2), beside a measure that ignores its scale."""
    if not adapters:
        return None
    figure = new_figure(9, 1.5 + 0.34 * max(2, len(adapters)), "Sparsity of the deltas, mean over layers")
    left, right = figure.subplots(1, 2, sharey=True)
    _shares(left, adapters, [a.share for a in adapters], "elements below 1e-5 (%)")
    _shares(right, adapters, [a.hoyer for a in adapters], "Hoyer sparsity × 100")
    left.set_yticks(range(len(adapters)), [subscript(a.label) for a in adapters])
    left.set_ylim(len(adapters) - 0.4, -0.6)
    return figure


def _shares(ax: Axes, adapters: Sequence[Adapter], values: Sequence[Measured | None], name: str) -> None:
    for place, (adapter, measured) in enumerate(zip(adapters, values, strict=True)):
        if measured is not None:
            colour = objective_colour(adapter.objective) if adapter.objective else BLUE
            value, spread = 100 * measured.value, 100 * (measured.stderr or 0.0)
            ax.barh(place, value, height=0.7, color=colour, alpha=0.85, xerr=spread, ecolor=BLACK)
            ax.text(value + spread + 1.5, place, f"{value:.1f}", va="center", fontsize=9)
    ax.set_xlim(0, 115)
    ax.set_xticks(range(0, 101, 20))
    ax.set_xlabel(name)
    clean(ax, "x")


def conflict_by_layer(reports: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    """Sign conflict and cosine of the SFT and preference deltas by layer, mean over a layer's modules.

    `reports` maps a label to a merge.json; tensors without a layer number in their name are left out.
    """
    if not reports:
        return None
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
    panels[0].set_ylim(0, 1.08 * panels[0].get_ylim()[1])
    panels[1].axhline(0, color=GREY, linewidth=0.8)
    add_legend(figure, panels)
    return figure


def by_layer(tensors: Mapping[str, Mapping[str, Any]], measure: str) -> dict[int, float]:
    """Layer number -> mean of `measure` over the tensors of that layer."""
    layers: dict[int, list[float]] = {}
    for name, values in tensors.items():
        if (match := re.search(r"\.(\d+)\.", name)) and values.get(measure) is not None:
            layers.setdefault(int(match[1]), []).append(float(values[measure]))
    return {layer: sum(v) / len(v) for layer, v in sorted(layers.items())}


# --- training ----------------------------------------------------------------------------------------


def training_curves(histories: Mapping[str, pd.DataFrame], title: str = "Training") -> Figure | None:
    """The step logs (label -> history.csv): loss, its L1 part, sparsity, rewards, accuracy, KL.

    A panel appears where a log has two values of its column or more. Rewards of chosen and rejected stand apart, so
    that a chosen likelihood that falls with the rejected one shows.
    """
    shown = {
        name: column
        for name, column in CURVES.items()
        if any(column in h and h[column].count() > 1 for h in histories.values())
    }
    if not shown:
        return None
    figure, panels = new_panels(len(shown), title)
    for ax, (name, column) in zip(panels, shown.items(), strict=True):
        for (label, history), colour in zip(histories.items(), _shades(len(histories)), strict=True):
            if column in history:
                curve = history[["step", column]].dropna()
                marker = "o" if len(curve) < 20 else ""
                (line,) = ax.plot(curve["step"], curve[column], label=label, color=colour)
                line.set(linewidth=1.3, marker=marker, markersize=3)
        ax.set_title(name, fontsize=11)
        ax.set_xlabel("optimizer step")
        clean(ax, "y")
    add_legend(figure, panels)
    return figure


def _shades(count: int) -> list[tuple[float, float, float, float]]:
    """Dark to light, in the order of the legend."""
    return [colormaps["viridis"](0.88 * i / max(1, count - 1)) for i in range(count)]
