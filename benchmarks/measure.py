"""What the benchmarks share: a command in a process of its own, the machine's peak, one table, one file each.

    python benchmarks/measure.py                            # the table of everything that benchmarks/*.json holds
    python benchmarks/measure.py --csv docs/benchmarks.csv  # and the same as a file

A benchmark runs its contenders one after another with `run_child`, proves that their results are equal, and hands
its rows to `publish`. Nothing here imports torch: a process's peak counts the memory of the one it was forked from.
"""

import csv
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

FOLDER = Path(__file__).parent
PACKAGES = ("torch", "transformers", "peft", "trl", "mergekit", "lm-eval")
# threads that sleep while they wait: `train.py` sets the same, and no contender is slower for it
ENVIRONMENT = {"GOMP_SPINCOUNT": "1000", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Child:
    """A process that has ended well."""

    seconds: float
    """Wall time from start to end."""
    peak_mb: float
    """Largest resident memory, in MiB."""
    result: dict[str, Any]
    """The JSON object on its last line of output; empty if there is none."""


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


@dataclass
class Report:
    """The rows of one benchmark, and whatever else is worth keeping in its file."""

    name: str
    rows: list[Row] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


def run_child(*command: str | Path, environment: Mapping[str, str] | None = None) -> Child:
    """Run a command to its end, alone; a first word ending in `.py` runs under this Python.

    Raises `RuntimeError` with the end of its stderr if it fails.
    """
    words = [str(word) for word in command]
    words = [sys.executable, *words] if words[0].endswith(".py") else words
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        started = time.perf_counter()
        variables = os.environ | ENVIRONMENT | dict(environment or {})
        process = subprocess.Popen(words, stdout=out, stderr=err, env=variables)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0), err.seek(0)
        if status:
            raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}:\n{err.read()[-4000:]}")
        return Child(seconds, usage.ru_maxrss / 1024, last_json(out.read()))


def last_json(text: str) -> dict[str, Any]:
    lines = text.strip().splitlines()
    if not lines or not lines[-1].startswith("{"):
        return {}
    result: dict[str, Any] = json.loads(lines[-1])
    return result


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def skipped(what: str, package: str) -> Row:
    return Row(what, "-", note=f"skipped: {package} is not installed (pip install -e '.[bench]')")


def matrix_peak() -> float:
    """FLOP/s of the best bfloat16 matrix product on this machine, with the threads the contenders have."""
    return float(run_child(FOLDER / "contenders" / "matrix_peak.py").result["flops_per_second"])


def versions() -> dict[str, str]:
    found = {name: version(name) for name in PACKAGES if installed(name.replace("-", "_"))}
    return found | {"python": platform.python_version()}


def publish(report: Report) -> None:
    """Print the report's table and write `benchmarks/<name>.json`."""
    data = {
        "machine": {"processor": processor(), "cores": os.cpu_count(), "load": os.getloadavg()},
        "versions": versions(),
        "rows": [asdict(row) for row in report.rows],
        "details": report.details,
    }
    (FOLDER / f"{report.name}.json").write_text(json.dumps(data, indent=1))
    show({report.name: report.rows})


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def show(reports: Mapping[str, Sequence[Row]]) -> None:
    """One table; ratios in bold where they reach what they should, in red where they do not."""
    table = Table("benchmark", "what", "measured", "against", "its figure", "ratio", "to reach", "note")
    for name, rows in reports.items():
        for row in rows:
            style = {True: "bold green", False: "bold red", None: ""}[row.met]
            ratio = "" if row.ratio is None else f"{row.ratio:.3g}"
            styled = f"[{style}]{ratio}[/]" if style else ratio
            table.add_row(
                name, row.what, row.measured, row.against, row.reference, styled, row.reach, row.note
            )
        table.add_section()
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def write_csv(path: Path, reports: Mapping[str, Sequence[Row]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["benchmark", "what", "measured", "against", "its figure", "ratio", "to reach", "note"]
        )
        for name, rows in reports.items():
            for row in rows:
                ratio = "" if row.ratio is None else f"{row.ratio:.3g}"
                writer.writerow(
                    [name, row.what, row.measured, row.against, row.reference, ratio, row.reach, row.note]
                )


def main(words: Sequence[str]) -> None:
    files = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
    found = {name: [Row(**row) for row in data["rows"]] for name, data in files.items() if "rows" in data}
    show(found)
    if words[:1] == ["--csv"]:
        write_csv(Path(words[1]), found)


if __name__ == "__main__":
    main(sys.argv[1:])
