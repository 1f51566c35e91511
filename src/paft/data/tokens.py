"""The token rows of a data stage: written to Parquet as they come, read by index."""

from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from paft.chat.tokens import Encoded, EncodedAnswer, EncodedPair
from paft.data.sources import Split

Tokens = TypeVar("Tokens", Encoded, EncodedPair, EncodedAnswer)

ROWS_PER_GROUP = 1024
"""Of the Parquet file; no more rows are in memory while it is written."""


def write_rows(rows: Iterator[Tokens], kind: type[Tokens], path: Path) -> int:
    """Write the rows to a Parquet file, a column for each field of their `kind`: tokens are lists of int32, a label is
    a boolean. Returns how many rows there were."""
    types = {name: pa.bool_() if hint is bool else pa.list_(pa.int32()) for name, hint in _fields(kind)}
    schema, num_rows = pa.schema(types.items()), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, schema) as writer:
        while group := list(islice(rows, ROWS_PER_GROUP)):
            columns = [_column(values) for values in zip(*group, strict=True)]
            writer.write_table(pa.table(columns, schema=schema))
            num_rows += len(group)
    return num_rows


def _fields(kind: type[Tokens]) -> list[tuple[str, Any]]:
    """Names and types of a row's fields, in order."""
    return [(name, kind.__annotations__[name]) for name in kind._fields]


def _column(lists: Sequence[Any]) -> pa.Array:
    """Labels, or lists of int32; from one array, as Arrow takes several times as long over Python's lists."""
    if isinstance(lists[0], bool):
        return pa.array(lists)
    values = array("i")
    for one in lists:
        values.fromlist(one)
    ends = np.cumsum([0, *map(len, lists)], dtype=np.int32)
    return pa.ListArray.from_arrays(ends, np.frombuffer(values, np.int32))


class TokenRows(Sequence[Tokens]):
    """Prepared rows by index; the tokens stay in Arrow memory until a row is asked for."""

    def __init__(self, table: pa.Table, kind: type[Tokens]) -> None:
        self._columns = [table[name] for name in kind._fields]
        self._kind: type[Tokens] = kind

    def __len__(self) -> int:
        return len(self._columns[0])

    def __getitem__(self, index: int) -> Tokens:  # type: ignore[override]
        """Row `index` as lists of int; slices are not offered."""
        return self._kind(*(column[index].as_py() for column in self._columns))

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row's longest sequence, int64 of shape (rows,); for batches of similar length."""
        tokens = [column for column in self._columns if not pa.types.is_boolean(column.type)]
        sizes = [pc.list_value_length(column).to_numpy() for column in tokens]
        if self._kind is Encoded:
            return sizes[0].astype(np.int64)
        return (sizes[0] + np.maximum(sizes[1], sizes[2])).astype(np.int64)


def read_sft(folder: Path, split: Split) -> TokenRows[Encoded]:
    """The rows that `prepare_sft` wrote to `folder`; raises ValueError if the split is not there."""
    return TokenRows(_table(folder, split), Encoded)


def read_preference(folder: Path, split: Split) -> TokenRows[EncodedPair] | TokenRows[EncodedAnswer]:
    """The rows that `prepare_preference` or `prepare_unpaired` wrote to `folder`; raises ValueError if the split is not
    there."""
    table = _table(folder, split)
    if "label" in table.column_names:
        return TokenRows(table, EncodedAnswer)
    return TokenRows(table, EncodedPair)


def _table(folder: Path, split: Split) -> pa.Table:
    path = folder / f"{split}.parquet"
    if not path.is_file():
        found = sorted(file.stem for file in folder.glob("*.parquet"))
        raise ValueError(f"{folder} has no {split} rows; it has {found or 'none at all'}")
    return pq.read_table(path)
