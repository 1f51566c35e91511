"""Everything a store holds as results.csv, index.html and PNG files, and some of it in the terminal."""

import io
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from paft.report.labels import Column, Row, Scope, blocks, labels, score_columns, section, short
from paft.report.table import columns, merge_report, rows

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from paft.report.plots import Adapter

log = logging.getLogger("paft")


def build_report(store: Path, out: Path) -> list[Row]:
    """Write results.csv, index.html and its PNG files to `out`, each atomically; returns the rows.

    A store without a finished evaluation gives an empty list and no file.
    """
    import pandas as pd

    from paft.report.page import Block, page

    table = rows(store)
    if not table:
        return []
    out.mkdir(parents=True, exist_ok=True)
    shown = []
    for number, (scope, block) in enumerate(blocks(table), start=1):
        pictures = []
        for name, figure in figures(store, block):
            pictures.append(f"{number}-{name}.png")
            replace(out / pictures[-1], _png(figure))
        shown.append(Block(scope, block, pictures))
    frame = pd.DataFrame(table, columns=columns(table))
    replace(out / "results.csv", frame.to_csv(index=False).encode())
    replace(out / "index.html", page(shown).encode())
    return table


def figures(store: Path, block: Sequence[Row]) -> Iterator[tuple[str, "Figure"]]:
    """The figures of one block that there are numbers for, with their file names."""
    from paft.report import plots

    if any(r["paradigm"] == "parallel" for r in block):
        yield "scores_by_lambda", plots.scores_by_lambda(block)
    yield "scores_by_method", plots.scores_by_method(block)
    if found := adapters(store, block):
        yield "sparsity", plots.sparsity_bars(found)
    if reports := merge_reports(store, block):
        yield "conflict_by_layer", plots.conflict_by_layer(reports)
    for branch, title in (("sft", "SFT, step by step"), ("preference", "Preference training, step by step")):
        if curves := histories(store, block, branch):
            yield f"training_{branch}", plots.training_curves(curves, title)


# --- what belongs to the rows ------------------------------------------------------------------------


def adapters(store: Path, block: Sequence[Row]) -> list["Adapter"]:
    """The measured adapters behind the rows: SFT by lambda, then preference."""
    from paft.report.plots import Adapter

    found = []
    for branch in ("sft", "preference"):
        for label, row in trained(block, branch).items():
            share, hoyer = row[f"{branch}_sparsity"], row[f"{branch}_hoyer"]
            if share is not None:
                found.append(Adapter(label, branch, share, hoyer))
    return found


def trained(block: Sequence[Row], branch: str) -> dict[str, Row]:
    """A label for every adapter of `branch` behind the rows -> one row that uses it, by lambda."""
    users = {r[f"{branch}_key"]: r for r in reversed(block) if r[f"{branch}_key"]}
    names = {key: _adapter_name(r, branch) for key, r in users.items()}
    for more in ({k: f"lr={short(r[f'{branch}_lr'])}" for k, r in users.items()}, {k: k[:6] for k in users}):
        count = Counter(names.values())
        names = {k: name if count[name] == 1 else f"{name} {more[k]}" for k, name in names.items()}
    by_lambda = sorted(users, key=lambda k: (" on " in names[k], users[k]["lambda"] or 0.0, names[k]))
    return {names[key]: users[key] for key in by_lambda}


def _adapter_name(row: Row, branch: str) -> str:
    sft = f"{'SFT_sparse' if row['lambda'] else 'SFT'}, λ={short(row['lambda'])}"
    if branch == "sft":
        return sft
    aligned = row["preference"].upper()
    return f"{aligned} on {sft}" if row["paradigm"] == "sequential" else aligned


def merge_reports(store: Path, block: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """The merge report of every merged pair of adapters, once: its deltas are the same for every method."""
    merged = [r for r in block if r["paradigm"] == "parallel"]
    pairs = {(r["sft_key"], r["preference_key"]): r for r in merged}
    preference = trained(merged, "preference")
    found = {}
    for label, sft in trained(merged, "sft").items():
        for other, aligned in preference.items():
            row = pairs.get((sft["sft_key"], aligned["preference_key"]))
            report = merge_report(store, row) if row else {}
            if report.get("layers"):
                found[f"{label} + {other}" if len(preference) > 1 else label] = report
    return found


def histories(store: Path, block: Sequence[Row], branch: str) -> dict[str, "pd.DataFrame"]:
    """The step log of every adapter of `branch` behind the rows that still has one."""
    import pandas as pd

    found = {}
    for label, row in trained(block, branch).items():
        path = store / branch / row[f"{branch}_key"] / "history.csv"
        if path.is_file():
            try:
                found[label] = pd.read_csv(path)
            except (OSError, ValueError) as error:
                log.warning("%s cannot be read: %s", path, error)
    return found


# --- files and terminal ------------------------------------------------------------------------------


def replace(path: Path, content: bytes) -> None:
    """Write `content` so that a reader sees the old file or the whole new one."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def print_table(table: Sequence[Row], keys: Sequence[str] = (), *, page: Path | None = None) -> None:
    """Print the rows with these evaluate keys (all, if empty) beside their base, and where the page is."""
    # a pipe or a log file has no width of its own
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    for scope, block in blocks(table):
        wanted = [r for r in block if not keys or r["evaluate_key"] in keys]
        if wanted:
            bases = [r for r in block if r["paradigm"] == "base" and r not in wanted]
            console.print(_terminal_table(scope, [*wanted, *bases]))
    if page is not None:
        console.print(f"Report: {page}", markup=False, soft_wrap=True)


def _terminal_table(scope: Scope, block: list[Row]) -> Table:
    found = score_columns(block)
    title = f"{scope.base} · {scope.evaluate}" + (f" · first {scope.limit} items only" if scope.limit else "")
    table = Table(
        title=escape(title), title_justify="left", caption="± 1 standard error", caption_justify="left"
    )
    for name in ("method", "lambda", *(c.title for c in found), "SFT < 1e-5"):
        table.add_column(escape(name), justify="left" if name == "method" else "right", no_wrap=True)
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
    value, stderr = column.value(row), column.stderr(row)
    error = f" [dim]± {column.text(stderr)}[/dim]" if stderr is not None else ""
    text = f"[bold]{column.text(value)}[/bold]" if value is not None and value == best else column.text(value)
    return text + error
