"""`evaluate.data_dir`: the rows of a data set of the hub out of files on this disk.

    <data_dir>/<data set>/<config>/<split>.jsonl

as `allenai/ai2_arc/ARC-Challenge/test.jsonl`. A data set without configs has its files, or a folder `data` of them, in
its own folder. A split may be several files, numbered as the hub's are: `test-00000-of-00002.parquet`.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset

from paft.data.files import READERS, UNPACKERS, rows_of

PART = r"(-\d+-of-\d+(-\w+)?)?"


class Place(NamedTuple):
    """Where a row stands."""

    file: Path
    number: int

    def __str__(self) -> str:
        return f"{self.file}, row {self.number}"


class LocalSplits(dict[str, Dataset]):
    """Split -> its rows, read when it is first asked for, as plain data in the order of the files.

    Raises `ValueError` naming the file where a split has none, and the row that is no object or has other columns than
    the first.
    """

    def __init__(self, data_dir: Path, path: str, config: str | None) -> None:
        super().__init__()
        named = data_dir / path / (config or "")
        self.folders = [named] if config else [named, named / "data"]
        self.places: dict[str, list[Place]] = {}

    def __missing__(self, split: str) -> Dataset:
        read = [(Place(file, number), row) for file in self.files(split) for number, row in rows_of(file)]
        if not read:
            raise ValueError(f"{self.files(split)[0]} holds no rows")
        first = _columns(*read[0])
        for place, row in read:
            _require_columns(place, _columns(place, row), first)
        try:
            self[split] = Dataset.from_list([row for _, row in read])
        except (ValueError, TypeError, OverflowError) as error:  # Arrow's are among them
            raise ValueError(f"{read[0][0].file}: a column holds values of several types: {error}") from None
        self.places[split] = [place for place, _ in read]
        return self[split]

    def has(self, split: str) -> bool:
        """Whether there is a file of the split."""
        return any(self._found(split))

    def files(self, split: str) -> list[Path]:
        """The files of a split in order. Raises `ValueError` for none, and for two that are not parts of one."""
        found = next(filter(None, self._found(split)), [])
        if not found:
            raise ValueError(
                f"evaluate.data_dir: there is no file {self.folders[0] / split}.jsonl; it may also end in "
                f"{', '.join(e for e in READERS if e != '.jsonl')}, each also with {', '.join(UNPACKERS)} behind it"
            )
        whole = [file for file in found if file.name.partition(".")[0] == split]
        if whole and len(found) > 1:
            raise ValueError(
                f"evaluate.data_dir: {' and '.join(map(str, found[:2]))} are both the split {split}; remove one"
            )
        return found

    def _found(self, split: str) -> Iterator[list[Path]]:
        endings = "|".join(re.escape(ending) for ending in READERS)
        packed = "|".join(re.escape(ending) for ending in UNPACKERS)
        name = re.compile(rf"{re.escape(split)}{PART}({endings})({packed})?", re.IGNORECASE)
        for folder in self.folders:
            there = sorted(folder.iterdir()) if folder.is_dir() else []
            yield [file for file in there if name.fullmatch(file.name)]


def _columns(place: Place, row: object) -> dict[str, Any]:
    if isinstance(row, ValueError):
        raise ValueError(f"{place}: {row}")
    if not isinstance(row, dict):
        raise ValueError(f"{place} must be an object with the data set's columns, got {type(row).__name__}")
    return row


def _require_columns(place: Place, row: dict[str, Any], first: dict[str, Any]) -> None:
    """Raise `ValueError` naming the column that this row has not, or alone has."""
    for column in first.keys() - row.keys():
        raise ValueError(f"{place} has no column {column!r}, which other rows of its split have")
    for column in row.keys() - first.keys():
        raise ValueError(f"{place} has a column {column!r}, which other rows of its split have not")
