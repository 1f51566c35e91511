"""What each item of a test scored, out of samples.jsonl, and the redrawn scores of every row."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from paft.report.labels import Row
from paft.report.statistics import Floats, Items, redraw
from paft.store.jsonfile import read_object

log = logging.getLogger("paft")


class Score(NamedTuple):
    """A row's score in one column; the same score over redrawn items, where its items are known, and their number."""

    value: float
    draws: Floats | None
    num_items: int | None


class Scores:
    """The scores of rows with all their redrawn ones; columns without items (sparsities) have only the value.

    Rows whose items differ are redrawn apart; `Scores.paired` tells.
    """

    def __init__(self, store: Path, rows: Sequence[Row]) -> None:
        found = {r["evaluate_key"]: read_items(store / "evaluate" / r["evaluate_key"]) for r in rows}
        self._averaged = {key: averaged for key, (_, averaged) in found.items()}
        self._draws: dict[tuple[str, str], Floats] = {}
        self._items: dict[tuple[str, str], tuple[str, tuple[str, ...]]] = {}
        groups: dict[tuple[str, str, tuple[str, ...]], list[tuple[str, Items]]] = {}
        for key, (columns, _) in found.items():
            for column, items in columns.items():
                groups.setdefault((column, items.task, items.ids), []).append((key, items))
                self._items[key, column] = items.task, items.ids
        for (column, _, _), models in groups.items():
            for (key, _), draws in zip(models, redraw([items for _, items in models]), strict=True):
                self._draws[key, column] = draws

    def of(self, row: Row, column: str) -> Score | None:
        """The row's score in a column of results.csv, or None where it has none."""
        value = row.get(column)
        if not isinstance(value, int | float) or not math.isfinite(value):
            return None
        parts = self._parts(row, column)
        if not parts or not all(part in self._draws for part in parts):
            return Score(float(value), None, None)
        draws = np.mean([self._draws[part] for part in parts], axis=0)
        return Score(float(value), draws, sum(len(self._items[part][1]) for part in parts))

    def paired(self, row: Row, other: Row, column: str) -> bool:
        """Whether both rows answered the same items in a column, or have no items to pair."""
        mine, theirs = ([self._items.get(part) for part in self._parts(r, column)] for r in (row, other))
        return mine == theirs

    def _parts(self, row: Row, column: str) -> list[tuple[str, str]]:
        key = row["evaluate_key"]
        columns = self._averaged.get(key, []) if column == "average" else [column]
        return [(key, c) for c in columns]


def read_items(folder: Path) -> tuple[dict[str, Items], list[str]]:
    """Items of every column of an evaluate folder, and the columns its average is over.

    A column whose items do not add up to its score is left out with a warning: its metric is no mean of items.
    """
    try:
        tasks = read_object(folder / "results.json")["tasks"]
        lines = (folder / "samples.jsonl").read_text().splitlines()
        samples: dict[str, list[dict[str, Any]]] = {}
        for sample in map(json.loads, lines):
            samples.setdefault(sample["column"], []).append(sample)
        found = {c: _items(tasks[c], s) for c, s in samples.items() if c in tasks}
    except FileNotFoundError:
        return {}, []
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        log.warning("%s: its items are left out: %s: %s", folder, type(error).__name__, error)
        return {}, []
    odd = [c for c, items in found.items() if not math.isclose(items.score, tasks[c]["score"], abs_tol=1e-6)]
    for column in odd:
        log.warning("%s: %s is no mean of its items, so nothing says how sure it is", folder, column)
    kept = {c: items for c, items in found.items() if c not in odd}
    return kept, [c for c, task in tasks.items() if task["in_average"]]


def _items(task: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> Items:
    """`Items` sorted by id. lm-eval gives (log-likelihood, bytes) for bits per byte, else one number an item."""
    ordered = sorted(samples, key=lambda s: str(s["item"]))
    ids = [str(s["item"]) for s in ordered]
    subtasks = [name.rpartition("/")[0] for name in ids]
    numbers = {name: n for n, name in enumerate(dict.fromkeys(subtasks))}
    pairs = [_pair(s["value"]) for s in ordered]
    return Items(
        task=str(task["task"]),
        ids=tuple(ids),
        numerators=np.array([above for above, _ in pairs]),
        denominators=np.array([below for _, below in pairs]),
        strata=tuple(numbers[name] for name in subtasks),
    )


def _pair(value: Any) -> tuple[float, float]:
    if isinstance(value, list):
        likelihood, num_bytes = value
        return -float(likelihood) / math.log(2), float(num_bytes)
    return float(value), 1.0
