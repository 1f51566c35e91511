"""The pictures of a table, drawn from its cells; one is drawn again only where something it shows has changed."""

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from paft.files.jsonfile import read_object, write_json
from paft.files.replacing import replacing
from paft.report.labels import has_dense
from paft.report.norms import norms, one_sided
from paft.report.row import Row
from paft.report.trainings import adapters, histories, merge_reports

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWN = "pictures.json"
"""In the folder of a report: of every picture, a digest of what it was drawn from."""
NOTHING = "nothing of "
"""Before the digest where there were no numbers for the picture."""


CURVES = (
    ("sft", "SFT, step by step", "Without the penalty the L1 part is zero."),
    (
        "preference",
        "Preference training, step by step",
        "Chosen and rejected stand apart: their margin also grows while both fall.",
    ),
)
"""Branch, title and caption of the pictures of trainings."""


@dataclass(frozen=True)
class Picture:
    """`draw` gives None where there are no numbers for it."""

    name: str
    caption: str
    draw: "Callable[[], Figure | None]"


def pictures(store: Path, block: Sequence[Row], skills: Sequence[str] | None = None) -> Iterator[Picture]:
    """What can be drawn of a table's rows, in the order of the page. matplotlib is loaded by the first one drawn."""
    if any(r.merged for r in block):
        lines = "A line per merge method; level lines are what there is without merging."
        lines += " Side by side: the deltas as they are, and brought to one norm." * (len(norms(block)) > 1)
        lines = " ".join([lines, *one_sided(block)])
        yield Picture("scores_by_lambda", lines, lambda: _score_plots().scores_by_lambda(block))
    heat = "The plain variant of each method; λ=0 is merging without the penalty."
    yield Picture("lambda_by_merge", heat, lambda: _study_plots().heat_map(block))
    bars = "The best of each column in bold." + (" Pale bars: SFT without the L1 penalty." * has_dense(block))
    yield Picture("scores_by_method", bars, lambda: _score_plots().scores_by_method(block))
    sparse = (
        "Left, the paper’s measure, which also counts an adapter that hardly moved. "
        "Right, one that does not change when the delta is scaled."
    )
    yield Picture("sparsity", sparse, lambda: _plots().sparsity_bars(adapters(store, block)))
    front = (
        "Two skills and what the base could do, each pair of the three in a panel. A cell is on the front (dashed in a "
        "panel, ringed in all three) if no other is at least as good everywhere and better somewhere; hollow, λ=0."
    )
    yield Picture("pareto", front, lambda: _study_plots().pareto(block, skills))
    layers = "Where the two deltas push in opposite directions, and the cosine between them."
    yield Picture(
        "conflict_by_layer", layers, lambda: _plots().conflict_by_layer(merge_reports(store, block))
    )
    for branch, title, caption in CURVES:
        yield Picture(f"training_{branch}", caption, partial(_curves, store, block, branch, title))


def _curves(store: Path, block: Sequence[Row], branch: str, title: str) -> "Figure | None":
    return _plots().training_curves(histories(store, block, branch), title)


def _plots() -> ModuleType:
    return import_module("paft.report.plots")


def _score_plots() -> ModuleType:
    return import_module("paft.report.score_plots")


def _study_plots() -> ModuleType:
    return import_module("paft.report.study_plots")


def figures(
    store: Path, block: Sequence[Row], skills: Sequence[str] | None = None
) -> Iterator[tuple[str, "Figure"]]:
    """The figures of a table that there are numbers for, with their names."""
    for picture in pictures(store, block, skills):
        figure = picture.draw()
        if figure is not None:
            yield picture.name, figure


# --- files -------------------------------------------------------------------------------------------


class PictureFiles:
    """The PNG files of a report's folder. Ends with `finish`, which removes those of an earlier report."""

    def __init__(self, out: Path) -> None:
        self.out = out
        path = out / DRAWN
        self.before: dict[str, str] = read_object(path) if path.is_file() else {}
        self.now: dict[str, str] = {}

    def write(
        self, number: int, store: Path, block: Sequence[Row], skills: Sequence[str] | None
    ) -> list[tuple[str, str]]:
        """(file name `<number>-<picture>.png`, caption) of every picture of the table there are numbers for."""
        source, shown = _source(store, block, skills), []
        for picture in pictures(store, block, skills):
            name = f"{number}-{picture.name}.png"
            self.now[name] = self._kept(name, source) or self._drawn(name, source, picture)
            if self.now[name] == source:
                shown.append((name, picture.caption))
        return shown

    def finish(self) -> None:
        for name in self.before.keys() - self.now.keys():
            (self.out / name).unlink(missing_ok=True)
        write_json(self.out / DRAWN, self.now)

    def _kept(self, name: str, source: str) -> str:
        """What an earlier report recorded of the picture, if that still holds; else empty."""
        before = self.before.get(name, "")
        there = before == source and (self.out / name).is_file()
        return before if there or before == NOTHING + source else ""

    def _drawn(self, name: str, source: str, picture: Picture) -> str:
        figure = picture.draw()
        if figure is None:
            (self.out / name).unlink(missing_ok=True)
            return NOTHING + source
        with replacing(self.out / name) as file:
            file.write(png(figure))
        return source


def png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _source(store: Path, block: Sequence[Row], skills: Sequence[str] | None) -> str:
    """A digest of all that the pictures of a table are drawn from: rows, files of their trainings, and the code."""
    files = [store / b / r.key(b) / "history.csv" for r in block for b in ("sft", "preference") if r.key(b)]
    files += [store / "evaluate" / r.evaluate_key / "merge.json" for r in block]
    stamps = [(str(p), s.st_size, s.st_mtime_ns) for p in dict.fromkeys(files) if (s := _stat(p))]
    text = json.dumps([[dict(r) for r in block], stamps, skills, _code()], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


@cache
def _code() -> str:
    """A digest of this package and the version of what draws for it."""
    digest = hashlib.sha256(version("matplotlib").encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
