"""Rows of data files, from 1; one that cannot be read is the ValueError that says why.

A file's ending says its kind, and one behind it how it is packed.
"""

import bz2
import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from paft.data.fields import refuse_unread
from paft.files.jsonfile import parse

Numbered = Iterator[tuple[int, object]]


def rows_of(path: Path) -> Numbered:
    """The rows of a file with their numbers: lines of JSONL, else from 1.

    Raises `ValueError` naming the file if it is absent, of another kind, or cannot be unpacked or read.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}; looked for it in {Path.cwd()}")
    packing = path.suffix.lower() if path.suffix.lower() in UNPACKERS else ""
    ending = (Path(path.stem) if packing else path).suffix.lower()
    if ending not in READERS:
        raise ValueError(
            f"{path} must end in one of {', '.join(READERS)}, each also with {', '.join(UNPACKERS)} behind it, got "
            f"{ending + packing!r}"
        )
    if not packing:
        with path.open("rb") as stream:
            yield from READERS[ending](path, stream)
        return
    try:
        with UNPACKERS[packing](path) as stream:
            yield from READERS[ending](path, stream)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be unpacked: {error!s:.200}; pack it again") from None


def _zstandard(path: Path) -> IO[bytes]:
    import pyarrow as pa

    return io.BufferedReader(_Stream(pa.CompressedInputStream(str(path), "zstd")))


class _Stream(io.RawIOBase):
    """An Arrow stream whose faults are OSErrors, as those of gzip are."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def close(self) -> None:
        self.inner.close()
        super().close()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        import pyarrow as pa

        try:
            piece = self.inner.read(len(buffer))
        except pa.ArrowException as error:
            raise OSError(str(error)) from None
        buffer[: len(piece)] = piece
        return len(piece)


UNPACKERS: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".zst": _zstandard}


def _jsonl_rows(path: Path, stream: IO[bytes]) -> Numbered:
    for number, line in enumerate(stream, 1):
        if line.strip():
            yield number, _json_line(line)


def _json_line(line: bytes) -> object:
    try:
        return parse(line.rstrip(), distinct=True)
    except ValueError as error:
        return error


def _json_rows(path: Path, stream: IO[bytes]) -> Numbered:
    try:
        content = parse(stream.read(), distinct=True)
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


def _csv_rows(path: Path, stream: IO[bytes]) -> Numbered:
    with io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as file:
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


def _parquet_rows(path: Path, stream: IO[bytes]) -> Numbered:
    import pyarrow.parquet as pq

    packed = path.suffix.lower() in UNPACKERS
    with _readable(path, "Parquet"), pq.ParquetFile(io.BytesIO(stream.read()) if packed else path) as file:
        columns = file.schema_arrow.names
        batches = file.iter_batches(1024) if len(set(columns)) == len(columns) else ()
        yield from enumerate(_of_batches(batches), 1)
    _require_distinct(path, columns)


def _arrow_rows(path: Path, stream: IO[bytes]) -> Numbered:
    """Of a file that `datasets` writes: an Arrow stream."""
    import pyarrow as pa

    with _readable(path, "Arrow"), pa.ipc.open_stream(stream) as batches:
        columns = batches.schema.names
        yield from enumerate(_of_batches(batches if len(set(columns)) == len(columns) else ()), 1)
    _require_distinct(path, columns)


@contextmanager
def _readable(path: Path, kind: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise ValueError(f"{path} is not a readable {kind} file: {error!s:.300}; write it again") from None


def _of_batches(batches: Iterable[Any]) -> Iterator[dict[str, Any]]:
    return (with_own_fields(row) for batch in batches for row in batch.to_pylist())


def with_own_fields(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a table without the nulls that Arrow gives an object for the fields that only others have."""
    return {name: _own(value) for name, value in row.items()}


def _own(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _own(inner) for name, inner in value.items() if inner is not None}
    return [_own(item) for item in value] if isinstance(value, list) else value


READERS: dict[str, Callable[[Path, IO[bytes]], Numbered]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
    ".arrow": _arrow_rows,
}
