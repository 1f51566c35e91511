"""Everything a store holds as CSV tables, index.html and PNG files; `paft.report.terminal` prints."""

import io
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paft.report.cells import cells
from paft.report.findings import Finding, findings, flat
from paft.report.items import Scores
from paft.report.labels import Row, Scope, blocks, short
from paft.report.saved import ITEMS, RESULTS, items_bytes
from paft.report.stages import COLUMNS, stage_rows
from paft.report.table import columns, merge_report, rows

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from paft.report.plots import Adapter

log = logging.getLogger("paft")


@dataclass(frozen=True)
class Study:
    """Cells that may be compared, and what they say of the paper's claims."""

    scope: Scope
    cells: list[Row]
    findings: list[Finding]


def studies(store: Path, table: Sequence[Row]) -> list[Study]:
    """The rows of a store by scope, their seeds as one cell each: what every view of the report is made from."""
    return _studies(table, Scores(store, table))


def _studies(table: Sequence[Row], scores: Scores) -> list[Study]:
    found = []
    for scope, block in blocks(cells(table, scores)):
        families = {r["family"] for r in block}
        found.append(Study(scope, block, findings([r for r in table if r["family"] in families], scores)))
    return found


def build_report(
    store: Path, out: Path, *, paper: Path | None = None, skills: Sequence[str] | None = None
) -> list[Row]:
    """Write the tables, index.html and its PNG files to `out`, each atomically; returns the cells.

    results.csv has a row for every evaluation, items.parquet for every item of it, cells.csv for every cell with its
    seeds together, claims.csv for every test of a claim, stages.csv for every finished stage. `store` may be a report
    that was saved from one (`paft.report.saved`): then all is made anew that its two files tell. `paper` is a file of
    the paper's numbers to show beside, `skills` the three columns of the Pareto picture. A store without a finished
    evaluation gives an empty list and no file. Raises `ValueError` for a paper file that cannot be read.
    """
    from paft.report.page import Block, page
    from paft.report.paper import read_paper

    table = rows(store)
    if not table:
        return []
    scores = Scores(store, table)
    table = [row | scores.errors(row) for row in table]
    printed = read_paper(paper) if paper else []
    out.mkdir(parents=True, exist_ok=True)
    every, shown = _studies(table, scores), []
    for number, study in enumerate(every, start=1):
        pictures = []
        for name, figure in figures(store, study.cells, skills):
            pictures.append(f"{number}-{name}.png")
            replace(out / pictures[-1], _png(figure))
        shown.append(Block(study.scope, study.cells, pictures, study.findings))
    joined = list({r["family"]: r for study in every for r in study.cells}.values())
    tested = [
        {name: getattr(s.scope, name) for name in ("base", "evaluate", "limit")} | flat(f)
        for s in every
        for f in s.findings
    ]
    replace(out / RESULTS, csv_bytes(table, columns(table)))
    replace(out / ITEMS, items_bytes(table, scores.items))
    replace(out / "cells.csv", csv_bytes(joined, columns(joined)))
    replace(out / "claims.csv", csv_bytes(tested, list(tested[0])))
    if stages := stage_rows(store):
        replace(out / "stages.csv", csv_bytes(stages, COLUMNS))
    replace(out / "index.html", page(shown, table, printed).encode())
    return joined


def figures(
    store: Path, block: Sequence[Row], skills: Sequence[str] | None = None
) -> Iterator[tuple[str, "Figure"]]:
    """The figures of one block that there are numbers for, with their file names."""
    from paft.report import plots, study_plots

    if any(r["paradigm"] == "parallel" for r in block):
        yield "scores_by_lambda", plots.scores_by_lambda(block)
    if heat := study_plots.heat_map(block):
        yield "lambda_by_merge", heat
    yield "scores_by_method", plots.scores_by_method(block)
    if found := adapters(store, block):
        yield "sparsity", plots.sparsity_bars(found)
    if points := study_plots.pareto(block, skills):
        yield "pareto", points
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
                errors = (row.get(f"{branch}_{measure}_stderr") for measure in ("sparsity", "hoyer"))
                found.append(Adapter(label, branch, share, hoyer, *errors))
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
    kind = [str(row[c]) for c in ("l1_of", "l1_method") if row.get(c) not in (None, "delta", "subgradient")]
    kind += [f"to {100 * row['l1_target']:g} %"] if row.get("l1_target") else []
    sft = " ".join([f"{'SFT_sparse' if row['lambda'] else 'SFT'}, λ={short(row['lambda'])}", *kind])
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


# --- files -------------------------------------------------------------------------------------------


def replace(path: Path, content: bytes) -> None:
    """Write `content` so that a reader sees the old file or the whole new one."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def csv_bytes(table: Sequence[Row], names: Sequence[str]) -> bytes:
    import pandas as pd

    return pd.DataFrame(table, columns=list(names)).to_csv(index=False).encode()


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
