"""Everything a store holds as CSV tables, index.html and PNG files; `paft.report.terminal` prints."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from paft.files.replacing import replacing
from paft.report.cells import cells
from paft.report.findings import Finding, findings, flat
from paft.report.items import Scores
from paft.report.items_csv import items_csv
from paft.report.pictures import PictureFiles, figures
from paft.report.row import Row
from paft.report.saved import ITEMS, ITEMS_CSV, RESULTS, csv_bytes, items_bytes
from paft.report.scope import Scope, blocks, ranked
from paft.report.stages import COLUMNS, stage_rows
from paft.report.table import columns, require_rows, rows

__all__ = ["Report", "Study", "build_report", "figures", "studies", "write_report"]


@dataclass(frozen=True)
class Study:
    """Cells that may be compared, and what they say of the paper's claims."""

    scope: Scope
    cells: list[Row]
    findings: list[Finding]


class Report:
    """The evaluations of a store, or of a report saved from one, with their items; what every view is made from."""

    def __init__(self, store: Path, table: Sequence[Row] | None = None) -> None:
        self.store = store
        given = rows(store) if table is None else table
        self.scores = Scores(store, given)
        self.table = [row | self.scores.errors(row) for row in given]

    @cached_property
    def studies(self) -> list[Study]:
        """The rows by scope, their seeds as one cell each."""
        studies = []
        for scope, block in blocks(cells(self.table, self.scores)):
            families = {r.family for r in block}
            tested = [r for r in self.table if r.family in families]
            studies.append(Study(scope, block, findings(tested, self.scores)))
        return studies

    @property
    def cells(self) -> list[Row]:
        """Every cell once, in the order of the tables."""
        return list({r.family: r for study in self.studies for r in study.cells}.values())

    def of_run(self, keys: Collection[str]) -> list[tuple[Scope, list[Row]]]:
        """The cells of these evaluations alone, by scope, each beside its base: a run's own numbers.

        Seeds that another run added to a cell are not in them. A scope is shown once however many its base is in.
        """
        own = cells([r for r in self.table if r.evaluate_key in keys], self.scores)
        bases = [r for r in self.cells if r.paradigm == "base" and r.evaluate_key not in keys]
        beside = [r for r in bases if any(_same_questions(r, mine) for mine in own)]
        return blocks(ranked([*own, *beside]))


def _same_questions(one: Row, other: Row) -> bool:
    return all(one[c] == other[c] for c in ("base", "evaluate", "template", "limit"))


def studies(store: Path, table: Sequence[Row]) -> list[Study]:
    """The rows of a store by scope, and the paper's claims on them."""
    return Report(store, table).studies


def build_report(
    store: Path, out: Path, *, paper: Path | None = None, skills: Sequence[str] | None = None
) -> list[Row]:
    """`write_report` over a store, or a report saved from one; returns the cells."""
    report = Report(store)
    write_report(report, out, paper=paper, skills=skills)
    return report.cells


def write_report(
    report: Report, out: Path, *, paper: Path | None = None, skills: Sequence[str] | None = None
) -> None:
    """Write the tables, index.html and its PNG files to `out`, each atomically.

    results.csv has a row for every evaluation, items.parquet for every item of it, cells.csv for every cell with its
    seeds together, claims.csv for every test of a claim, stages.csv for every finished stage. From a report that was
    saved (`paft.report.saved`) all is made anew that its two files tell. `paper` is a file of the paper's numbers to
    show beside, `skills` the three columns of the Pareto picture. Pictures of what has not changed since an earlier
    report in `out` stay. A report without a finished evaluation writes no file. Raises `ValueError` for a paper file
    that cannot be read.
    """
    from paft.report.page import Block, page
    from paft.report.paper import read_paper

    if not report.table:
        return
    printed = read_paper(paper) if paper else []
    out.mkdir(parents=True, exist_ok=True)
    files, shown = PictureFiles(out), []
    for number, study in enumerate(report.studies, start=1):
        pictures = files.write(number, report.store, study.cells, skills)
        shown.append(Block(study.scope, study.cells, pictures, study.findings))
    files.finish()
    for name, content in _tables(report).items():
        write(out / name, content)
    write(out / "index.html", page(shown, report.table, printed, report.store).encode())


def save(store: Path, out: Path) -> int:
    """What a store says of its scores as text, to be kept under version control: results.csv, items.csv, stages.csv.

    Returns the number of evaluations. Raises `ValueError` for a store without any.
    """
    report = Report(store, require_rows(store))
    out.mkdir(parents=True, exist_ok=True)
    write(out / RESULTS, csv_bytes(report.table, columns(report.table)))
    write(out / ITEMS_CSV, items_csv(report.table, report.scores.items))
    if stages := stage_rows(store):
        write(out / "stages.csv", csv_bytes(stages, COLUMNS))
    return len(report.table)


def _tables(report: Report) -> dict[str, bytes]:
    """The files beside the page."""
    tested = [_scope_columns(s.scope) | flat(f) for s in report.studies for f in s.findings]
    files = {
        RESULTS: csv_bytes(report.table, columns(report.table)),
        ITEMS: items_bytes(report.table, report.scores.items),
        "cells.csv": csv_bytes(report.cells, columns(report.cells)),
        "claims.csv": csv_bytes(tested, list(tested[0])),
    }
    stages = stage_rows(report.store)
    return files | ({"stages.csv": csv_bytes(stages, COLUMNS)} if stages else {})


def _scope_columns(scope: Scope) -> dict[str, Any]:
    return {name: getattr(scope, name) for name in ("base", "evaluate", "limit")}


def write(path: Path, content: bytes) -> None:
    """Write `content` so that a reader sees the old file or the whole new one."""
    with replacing(path) as file:
        file.write(content)
