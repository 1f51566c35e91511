"""One look for all figures: palette, panels, axes, legend. Figures are made without pyplot and its state."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from paft.merge.methods import METHODS
from paft.report.names import merge_place, objective_place
from paft.report.row import Row

# Okabe and Ito's palette, which colour-blind readers can tell apart
BLACK, BLUE, ORANGE, GREEN, PINK = "#222222", "#0072B2", "#E69F00", "#009E73", "#CC79A7"
SKY, RED, GREY = "#56B4E9", "#D55E00", "#777777"
# of Tol's schemes, for what comes after the paper's: first those of the muted one
MORE = (
    *("#882255", "#999933", "#332288", "#117733", "#44AA99", "#DDCC77", "#CC6677", "#AA4499"),
    *("#661100", "#6699CC", "#BBCC33", "#EE8866", "#AA3377", "#225555", "#4477AA", "#FFAABB"),
)
METHOD_CYCLE = (SKY, ORANGE, BLUE, RED, PINK, GREEN, *MORE)
OBJECTIVE_CYCLE = (RED, PINK, GREEN, *MORE)
PARADIGM_COLOURS = {
    "parallel": BLUE,
    "sequential": ORANGE,
    "sft": SKY,
    "base": GREY,
    "joint": GREEN,
    "expo": RED,
    "preference_first": PINK,
}
MARKERS = "osD^vP*X<>"


def merge_colour(name: str) -> str:
    """Of a merge method, in the order of the registry; grey of one that is not in it."""
    return METHOD_CYCLE[merge_place(name) % len(METHOD_CYCLE)] if name in METHODS else GREY


def merge_marker(name: str) -> str:
    return MARKERS[merge_place(name) % len(MARKERS)]


def objective_colour(name: str) -> str:
    """Of preference training alone, by objective."""
    return OBJECTIVE_CYCLE[objective_place(name) % len(OBJECTIVE_CYCLE)]


def paradigm_colour(row: Row) -> str:
    return PARADIGM_COLOURS.get(row.paradigm) or objective_colour(row.preference)


def new_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure of so many inches, laid out around its title and legend."""
    figure = Figure(figsize=(width, height), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13, x=0.01, ha="left", weight="bold")
    return figure


def new_panels(
    count: int, title: str, *, width: float = 3.6, columns: int | None = None
) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels, at most three in a row unless `columns` are given."""
    columns = columns or (2 if count == 4 else max(1, min(count, 3)))
    lines = max(1, -(-count // columns))
    figure = new_figure(max(6.5, width * columns), 0.9 + 2.9 * lines, title)
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for ax in panels[count:]:
        ax.set_axis_off()
    return figure, panels[:count]


def clean(ax: Axes, grid: str) -> None:
    """No box around the data, a faint grid along one axis."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="x" if grid == "x" else "y", color="#dddddd", linewidth=0.7)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=9)


def add_legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend below all panels, each label once; the figure grows by what it needs of more than one line."""
    by_label: dict[str, Any] = {}
    for ax in panels:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            by_label.setdefault(label, handle)
    if not by_label:
        return
    # inches of the widest entry, and of a line, at 9 points
    widest = 0.6 + 0.075 * max(map(len, by_label))
    columns = max(1, min(4, len(by_label), int(figure.get_figwidth() / widest)))
    figure.set_figheight(figure.get_figheight() + 0.2 * (-(-len(by_label) // columns) - 1))
    figure.legend(
        list(by_label.values()),
        [subscript(label) for label in by_label],
        loc="outside lower left",
        ncols=columns,
        frameon=False,
        fontsize=9,
    )


def subscript(label: str) -> str:
    """`label` for matplotlib: SFT_sparse with a lowered word, and no other character read as mathematics."""
    return label.replace("$", r"\$").replace("SFT_sparse", r"SFT$_{\mathrm{sparse}}$")
