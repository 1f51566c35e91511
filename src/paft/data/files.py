"""Rows of JSONL, JSON, CSV and Parquet files, from 1; one that cannot be read is the ValueError that says why."""

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from paft.data.fields import refuse_unread
from paft.files.jsonfile import parse


def _jsonl_rows(path: Path) -> Iterator[tuple[int, object]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, _json_line(line)


def _json_line(line: bytes) -> object:
    try:
        return parse(line.rstrip(), distinct=True)
    except ValueError as error:
        return error


def _json_rows(path: Path) -> Iterator[tuple[int, object]]:
    try:
        content = parse(path.read_bytes(), distinct=True)
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    rows = content.get("data") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise ValueError(
            f'{path} must hold a list of rows or {{"data": [rows]}}; for one row a line name it .jsonl'
        )
    if isinstance(content, dict):
        _require_no_more(path, content)
    yield from enumerate(rows, 1)


def _require_no_more(path: Path, content: dict[str, Any]) -> None:
    """Refuse what is said beside the rows and meant for all of them, as tools."""
    try:
        refuse_unread(content, {"data"}, ())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _csv_rows(path: Path) -> Iterator[tuple[int, object]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            _require_distinct(path, reader.fieldnames or ())
            for number, row in enumerate(reader, 1):
                extra = None in row
                yield number, ValueError("more cells than the header has columns") if extra else row
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path}, line {reader.line_num + 1}: {error}; JSONL has no such limits"
            ) from None


def _require_distinct(path: Path, columns: Sequence[str]) -> None:
    if len(set(columns)) < len(columns):
        twice = next(name for name in columns if columns.count(name) > 1)
        raise ValueError(
            f"{path} has two columns {twice!r:.60}, of which a row keeps one; rename or remove one"
        )


def _parquet_rows(path: Path) -> Iterator[tuple[int, object]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            rows = (row for batch in file.iter_batches(1024) for row in batch.to_pylist())
            yield from enumerate(rows if len(set(columns)) == len(columns) else (), 1)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise ValueError(f"{path} is not a readable Parquet file: {error!s:.300}; write it again") from None
    _require_distinct(path, columns)


READERS: dict[str, Callable[[Path], Iterator[tuple[int, object]]]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}
