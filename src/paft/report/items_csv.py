"""Every answer of a report as text: items.csv, in place of items.parquet where files are to be read and compared.

A row holds one column of one evaluation: `evaluate_key`, `column`, `task`, and lists with blanks between, one entry an
item: `items`, their names; `numerators` and `denominators`, as `paft.evaluate.items.Items` has them, to six digits. A
list of single digits has no blanks. `task`, `items` and `denominators` are empty where they are those of the last row
of the same column that has them, so that a cell more is a line more.
"""

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from paft.evaluate.items import Items, from_pairs
from paft.report.row import Row

FIELDS = ("evaluate_key", "column", "task", "items", "numerators", "denominators")
INHERITED = ("task", "items", "denominators")


def items_csv(rows: Sequence[Row], items: Mapping[str, Mapping[str, Items]]) -> bytes:
    """items.csv of these rows, column by column."""
    columns = dict.fromkeys(column for row in rows for column in items[row.evaluate_key])
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    for column in columns:
        last: dict[str, str] = {}
        for row in rows:
            if (own := items[row.evaluate_key].get(column)) is None:
                continue
            written = {
                "task": own.task,
                "items": " ".join(own.ids),
                "denominators": _numbers(own.denominators.tolist()),
            }
            same = {name for name in INHERITED if written[name] == last.get(name)}
            last = written
            shown = {name: "" if name in same else value for name, value in written.items()}
            numerators = _numbers(own.numerators.tolist())
            writer.writerow(
                shown | {"evaluate_key": row.evaluate_key, "column": column, "numerators": numerators}
            )
    return text.getvalue().encode()


def read_items_csv(path: Path, keys: Collection[str]) -> dict[str, dict[str, Items]]:
    """The items of these evaluations, by key and column. Raises `ValueError` naming a line that is none."""
    found: dict[str, dict[str, Items]] = {key: {} for key in keys}
    last: dict[str, dict[str, str]] = {}
    csv.field_size_limit(2**31 - 1)  # a list of many items is one field
    with path.open(newline="", encoding="utf-8") as file:
        for number, line in enumerate(csv.DictReader(file), start=2):
            before = last.get(line["column"], {})
            whole = line | {name: line[name] or before.get(name, "") for name in INHERITED}
            last[line["column"]] = whole
            if line["evaluate_key"] not in found:
                continue
            names = whole["items"].split(" ")
            lists = [_read(whole[name], len(names)) for name in ("numerators", "denominators")]
            if any(len(values) != len(names) for values in lists):
                raise ValueError(
                    f"{path}, line {number}: {len(names)} items, and numbers for another number of them"
                )
            pairs = list(zip(names, *lists, strict=True))
            found[line["evaluate_key"]][line["column"]] = from_pairs(whole["task"], pairs)
    return found


def _numbers(values: Sequence[float]) -> str:
    texts = [f"{value:.6g}" for value in values]
    return ("" if all(text in "0123456789" for text in texts) else " ").join(texts)


def _read(text: str, size: int) -> list[float]:
    parts = text.split(" ") if " " in text or size == 1 else list(text)
    return [float(part) for part in parts]
