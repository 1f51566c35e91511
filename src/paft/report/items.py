"""The scores of rows with what each item adds, out of a store's samples.jsonl or a report's items.parquet."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from paft.evaluate.items import Floats, Items, from_samples
from paft.evaluate.results import Results
from paft.report.columns import MEASURES
from paft.report.row import Row
from paft.report.saved import is_saved, saved_items
from paft.report.statistics import Sample

log = logging.getLogger("paft")


class Score(NamedTuple):
    """A row's score in one column, and what each item adds to it: see `paft.report.statistics.Arm`."""

    value: float
    items: Mapping[Sample, Floats] | None


class Scores:
    """The scores of rows with their items, out of a store or a report that was saved from one.

    Rows that answered the same items of a task share a `Sample`; `paired` tells.
    """

    def __init__(self, source: Path, rows: Sequence[Row]) -> None:
        keys = list(dict.fromkeys(r["evaluate_key"] for r in rows))
        if is_saved(source):
            self.items = saved_items(source, keys)
        else:
            self.items = {key: read_items(source / "evaluate" / key) for key in keys}
        drawn: dict[tuple[str, tuple[str, ...]], Sample] = {}
        self._samples: dict[tuple[str, str], Sample] = {}
        for key, columns in self.items.items():
            for column, items in columns.items():
                fresh = Sample(items.task, items.ids, items.starts)
                self._samples[key, column] = drawn.setdefault((items.task, items.ids), fresh)

    def of(self, row: Row, column: str) -> Score | None:
        """The row's score in a column of results.csv, or None where it has none."""
        value = row.get(column)
        if not isinstance(value, int | float) or not math.isfinite(value):
            return None
        if column in MEASURES:
            return Score(float(value), {})
        parts = _parts(row, column)
        added_by: dict[Sample, Floats] = {}
        for part in parts:
            sample = self._samples.get((row["evaluate_key"], part))
            if sample is None:
                return Score(float(value), None)
            added = self.items[row["evaluate_key"]][part].contributions / len(parts)
            added_by[sample] = added_by[sample] + added if sample in added_by else added
        return Score(float(value), added_by or None)

    def paired(self, row: Row, other: Row, column: str) -> bool:
        """Whether both rows answered the same items in a column, or have no items to pair."""
        mine, theirs = (
            [self._samples.get((r["evaluate_key"], part)) for part in _parts(r, column)] for r in (row, other)
        )
        return mine == theirs

    def errors(self, row: Row) -> dict[str, float | None]:
        """`<column>_stderr` over items for every column of the row whose items are known."""
        return {f"{column}_stderr": items.stderr for column, items in self.items[row["evaluate_key"]].items()}


def _parts(row: Row, column: str) -> list[str]:
    """The columns that a column is the mean of."""
    return str(row["in_average"] or "").split() if column == "average" else [column]


def read_items(folder: Path) -> dict[str, Items]:
    """Items of every column of an evaluate folder.

    A column whose items do not add up to its score is left out with a warning: its metric is no mean of items.
    """
    if not (folder / "samples.jsonl").is_file():
        return {}
    try:
        tasks = Results.read(folder).tasks
        lines = (folder / "samples.jsonl").read_text().splitlines()
        samples: dict[str, list[dict[str, Any]]] = {}
        for sample in map(json.loads, lines):
            samples.setdefault(sample["column"], []).append(sample)
        by_column = {c: from_samples(tasks[c].task, s) for c, s in samples.items() if c in tasks}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        log.warning("%s: its items are left out: %s: %s", folder, type(error).__name__, error)
        return {}
    odd = [c for c, items in by_column.items() if not math.isclose(items.score, tasks[c].score, abs_tol=1e-6)]
    for column in odd:
        log.warning("%s: %s is no mean of its items, so nothing says how sure it is", folder, column)
    return {c: items for c, items in by_column.items() if c not in odd}
