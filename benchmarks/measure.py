"""The table of the benchmarks: their rows, one JSON file each, and the CSV file that the documentation shows.

    python benchmarks/measure.py                            # the table of everything that benchmarks/*.json holds
    python benchmarks/measure.py --csv docs/benchmarks.csv  # and the same into a file

Every row names its processor. What was measured on one replaces what the same benchmark gave on it before, in the
JSON file and in the CSV file; rows of other processors stay.
"""

import argparse
import csv
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from harness.process import BENCHMARKS, processor, versions
from rich.console import Console
from rich.table import Table

COLUMNS = ("benchmark", "what", "measured", "against", "its figure", "ratio", "to reach", "note")
Cells = dict[str, str]


@dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, against what, and what is to be reached."""

    what: str
    measured: str
    against: str = ""
    reference: str = ""
    ratio: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""
    processor: str = ""
    """Filled in by `publish`: the processor, or the device that it was measured on."""

    @property
    def reach(self) -> str:
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return "" if self.at_most is None else f"<= {self.at_most:g}"

    @property
    def met(self) -> bool | None:
        """None where nothing is to be reached or nothing was measured."""
        if self.ratio is None or not self.reach:
            return None
        return self.ratio >= self.at_least if self.at_least is not None else self.ratio <= self.at_most  # type: ignore[operator]

    def cells(self, benchmark: str) -> Cells:
        ratio = "" if self.ratio is None else f"{self.ratio:.3g}"
        shown = (
            benchmark,
            self.what,
            self.measured,
            self.against,
            self.reference,
            ratio,
            self.reach,
            self.note,
        )
        return {"processor": self.processor} | dict(zip(COLUMNS, shown, strict=True))


@dataclass
class Report:
    """The rows of one benchmark, and whatever else is worth keeping in its file."""

    name: str
    rows: list[Row] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


def skipped(what: str, package: str) -> Row:
    return Row(what, "-", note=f"skipped: {package} is not installed (pip install -e '.[bench]')")


def publish(report: Report, out: Path | None, *, device: str | None = None) -> None:
    """Print the report's table and write `<out>/<name>.json`; with None write nothing. `device` is where it was
    measured, if that is not the processor."""
    here = device or processor()
    rows = [replace(row, processor=here) for row in report.rows]
    show({report.name: rows})
    if out is None:
        return
    path = out / f"{report.name}.json"
    before = json.loads(path.read_text()) if path.is_file() else {}
    machines = before.get("machines", {})
    others = [row for row in before.get("rows", []) if row.get("processor", here) != here]
    machines[here] = {
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "versions": versions(),
        "details": report.details,
    }
    out.mkdir(parents=True, exist_ok=True)
    found = {"machines": machines, "rows": [*others, *map(asdict, rows)]}
    path.write_text(json.dumps(found, indent=1))


def read_reports(folder: Path) -> dict[str, list[Row]]:
    """Name of a benchmark -> its rows on every processor."""
    files = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    return {name: [Row(**row) for row in data["rows"]] for name, data in files.items() if "rows" in data}


def show(reports: Mapping[str, Sequence[Row]]) -> None:
    """One table a processor; ratios in bold where they reach what they should, in red where they do not."""
    lines = [(row, row.cells(name)) for name, rows in reports.items() for row in rows]
    lines.sort(key=lambda line: line[0].processor)
    for name, of_one in groupby(lines, key=lambda line: line[0].processor):
        table = Table(*COLUMNS, title=f"{name}, {os.cpu_count()} cores" if name == processor() else name)
        for _, section in groupby(of_one, key=lambda line: line[1]["benchmark"]):
            for row, cells in section:
                style = {True: "bold green", False: "bold red", None: ""}[row.met]
                ratio = f"[{style}]{cells['ratio']}[/]" if style else cells["ratio"]
                table.add_row(*(ratio if column == "ratio" else cells[column] for column in COLUMNS))
            table.add_section()
        Console(width=None if sys.stdout.isatty() else 200).print(table)


def write_csv(path: Path, reports: Mapping[str, Sequence[Row]]) -> None:
    """Put the rows into the file, in the order of processors and benchmarks.

    Rows of other benchmarks and of other processors stay. Raises `ValueError` for a file of other columns.
    """
    fresh = [row.cells(name) for name, rows in reports.items() for row in rows]
    measured = {(cells["processor"], cells["benchmark"]) for cells in fresh}
    kept = [cells for cells in read_csv(path) if (cells["processor"], cells["benchmark"]) not in measured]
    ordered = sorted([*kept, *fresh], key=lambda cells: (cells["processor"], cells["benchmark"]))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["processor", *COLUMNS], lineterminator="\n")
        writer.writeheader()
        writer.writerows(ordered)


def read_csv(path: Path) -> list[Cells]:
    """The rows of such a file, none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != ["processor", *COLUMNS]:
            raise ValueError(
                f"{path} has the columns {reader.fieldnames}, not those of the benchmarks' table; give another file"
            )
        return list(reader)


def main() -> None:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    where = "folder of the JSON files (default benchmarks/)"
    parser.add_argument("--out", type=Path, default=BENCHMARKS, metavar="DIR", help=where)
    parser.add_argument("--csv", type=Path, metavar="FILE", help="the CSV file to bring up to date")
    chosen = parser.parse_args()
    found = read_reports(chosen.out)
    if not found:
        parser.exit(2, f"error: {chosen.out} holds no results; run the benchmarks first: make bench\n")
    show(found)
    if chosen.csv:
        try:
            write_csv(chosen.csv, found)
        except (ValueError, OSError) as error:
            parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
