"""A report without its store: results.csv and items.parquet say all that its statistics are made from.

items.parquet has a row for every item of every evaluation and column: whose it is (`evaluate_key`, `family`, `seed`),
what was asked (`column`, `task`, `item`, its subtask before it where there are several) and the answer, `numerator`
over `denominator`: of a share 0 or 1 over 1, of bits per byte bits over bytes. items.csv (`paft.report.items_csv`) says
the same as text. `compare`, `ask` and the report itself take a folder with results.csv and one of them in place of a
store.
"""

import csv
import io
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from paft.config import Norm
from paft.evaluate.items import Items, from_pairs
from paft.report.items_csv import read_items_csv
from paft.report.options import ALIASES
from paft.report.row import MERGE_SEEDS, Row

RESULTS, ITEMS, ITEMS_CSV = "results.csv", "items.parquet", "items.csv"
WHOLE = ("seed", "limit", *MERGE_SEEDS)
# fmt: off
TEXT = (
    "base", "data", "paradigm", "preference", "merge", "variant", "evaluate", "lower_is_better", "in_average",
    "sft_data", "preference_data", "template", "backend", "finished", "commit", "command", "family",
    "sft_key", "preference_key", "merge_key", "evaluate_key",
)
WHOLE_NUMBER = re.compile("-?[0-9]{1,18}")
NAMES = ("l1_of", "l1_method", "sft_recipe", "preference_recipe")
# fmt: on
"""Columns of results.csv with whole numbers, with text that may be empty, and with text or nothing."""


def is_saved(folder: Path) -> bool:
    """Whether a folder holds a report with its items, and no store. Raises `ValueError` for one without its items."""
    if (folder / "evaluate").is_dir() or not (folder / RESULTS).is_file():
        return False
    if not any((folder / name).is_file() for name in (ITEMS, ITEMS_CSV)):
        raise ValueError(
            f"{folder} has {RESULTS} and no {ITEMS} or {ITEMS_CSV}: nothing says how sure its scores are; give the "
            "store they are of"
        )
    return True


def csv_bytes(table: Sequence[Mapping[str, Any]], names: Sequence[str]) -> bytes:
    """A CSV file of these columns: what a row does not have is empty, numbers keep every digit."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_written(row.get(name)) for name in names] for row in table)
    return text.getvalue().encode()


def _written(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def read_csv(path: Path) -> list[Row]:
    """The rows of a CSV file of the report as they were when it was written; empty cells are None, or text's.

    Options get their names on the command line, which older reports do not have.
    """
    with path.open(newline="", encoding="utf-8") as file:
        table = [{name: _value(name, text) for name, text in row.items()} for row in csv.DictReader(file)]
    return [Row(_with_options(row)) for row in table]


def saved_rows(folder: Path) -> list[Row]:
    """The rows of results.csv as they were when it was written."""
    return read_csv(folder / RESULTS)


def _with_options(row: dict[str, Any]) -> dict[str, Any]:
    if "norm" not in row and row.get("paradigm") == "parallel":
        row["norm"] = row.get("merge.norm") or Norm.own.value
    older = {new: row[old] for old, new in ALIASES.items() if old in row and new not in row}
    return row | {name: value for name, value in older.items() if value is not None}


def _value(column: str, text: str) -> Any:
    if column in TEXT:
        return text
    if not text:
        return None
    if column in NAMES:
        return text
    if text in ("True", "False"):
        return text == "True"
    if WHOLE_NUMBER.fullmatch(text):
        return int(text)
    try:
        return int(float(text)) if column in WHOLE else float(text)
    except ValueError:
        return text


def saved_items(folder: Path, keys: Collection[str]) -> dict[str, dict[str, Items]]:
    """The items of these evaluations, by key and column."""
    if not (folder / ITEMS).is_file():
        return read_items_csv(folder / ITEMS_CSV, keys)
    import pandas as pd

    table = pd.read_parquet(folder / ITEMS)
    items: dict[str, dict[str, Items]] = {key: {} for key in keys}
    asked = table[table["evaluate_key"].isin(items)]
    for (key, column), own in asked.groupby(["evaluate_key", "column"], observed=True, sort=False):
        pairs = zip(own["item"], own["numerator"], own["denominator"], strict=True)
        items[str(key)][str(column)] = from_pairs(str(own["task"].iloc[0]), list(pairs))
    return items


def items_bytes(rows: Sequence[Row], items: Mapping[str, Mapping[str, Items]]) -> bytes:
    """items.parquet of these rows."""
    import numpy as np
    import pandas as pd

    parts = [(row, column, scores) for row in rows for column, scores in items[row.evaluate_key].items()]
    sizes = [len(scores.ids) for *_, scores in parts]

    def repeated(values: list[Any]) -> Any:
        return np.repeat(np.array(values, dtype=object), sizes)

    table = pd.DataFrame(
        {
            "evaluate_key": repeated([row.evaluate_key for row, *_ in parts]),
            "family": repeated([row.family for row, *_ in parts]),
            "seed": pd.array(repeated([row.seed for row, *_ in parts]), dtype="Int64"),
            "column": repeated([column for _, column, _ in parts]),
            "task": repeated([scores.task for *_, scores in parts]),
            "item": [item for *_, scores in parts for item in scores.ids],
            "numerator": np.concatenate([scores.numerators for *_, scores in parts] or [np.empty(0)]),
            "denominator": np.concatenate([scores.denominators for *_, scores in parts] or [np.empty(0)]),
        }
    )
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False, compression="zstd")
    return buffer.getvalue()
