"""Raw rows of a source, with the place each came from.

Importing this module loads neither torch nor datasets nor pandas: a plan asks `sources` what a source holds.
"""

import random
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Literal, NamedTuple

from paft.config import DemoSource, FileSource, HubSource, Source
from paft.data.demo import DemoSplit, demo_rows
from paft.data.files import rows_of, with_own_fields
from paft.data.rows import renamed
from paft.files.hub import unavailable
from paft.files.listed import listed_files

Split = Literal["train", "validation", "held_out"]

DEMO_VALIDATION_ROWS = 64


class RawRow(NamedTuple):
    file: str
    """Where it stands: a file, a repository's split, a skill."""
    number: int
    value: object
    """What stands there under our names of the columns; the ValueError that says why where it cannot be read."""

    @property
    def place(self) -> str:
        return f"{self.file}, row {self.number}"


def file_of(place: str) -> str:
    """The file in a `RawRow.place`."""
    return place.rpartition(", row ")[0]


def label_of(source: Source, split: Split) -> str:
    """The source's files, repository or skill, for the log."""
    match source:
        case DemoSource():
            return f"demo {source.skill.value} {split}"
        case HubSource():
            return f"{source.repo} {_hub_split(source, split)}"
        case FileSource():
            return ", ".join(source.names(split))
    raise ValueError(f"source must be a DemoSource, HubSource or FileSource, got {type(source).__name__}")


def raw_rows(source: Source, split: Split) -> Iterator[RawRow]:
    """The rows of a split, at most `max_rows`. Raises `ValueError` naming a file that is absent or unreadable."""
    for row in islice(_all_rows(source, split), source.max_rows):
        if source.columns and not isinstance(row.value, ValueError):
            try:
                row = row._replace(value=renamed(row.value, source.columns))
            except ValueError as error:
                row = row._replace(value=error)
        yield row


def _all_rows(source: Source, split: Split) -> Iterator[RawRow]:
    if not source.has_validation and split == "validation":
        raise ValueError(
            f"{label_of(source, 'train')} has no validation part; set its validation_split or validation_path"
        )
    match source:
        case DemoSource():
            part: DemoSplit = "validation" if split == "validation" else "train"
            num_rows = DEMO_VALIDATION_ROWS if part == "validation" else source.num_rows
            rows = demo_rows(source.skill, split=part, num_rows=num_rows, seed=source.seed)
            yield from _numbered(label_of(source, split), rows)
        case HubSource():
            yield from _numbered(label_of(source, split), _hub_rows(source, _hub_split(source, split)))
        case FileSource():
            if split != "validation" and source.mix:
                yield from _mixed(source)
            else:
                yield from _of_files(source.names(split))


def _numbered(label: str, rows: Iterable[object]) -> Iterator[RawRow]:
    return (RawRow(label, number, row) for number, row in enumerate(rows, 1))


def _of_files(names: list[str]) -> Iterator[RawRow]:
    for path in listed_files(names):
        yield from (RawRow(str(path), number, row) for number, row in rows_of(path))


def _mixed(source: FileSource) -> Iterator[RawRow]:
    """Rows of files drawn by their shares, up to the last of the file that has none left first."""
    files = [_of_files([path]) for path in source.shares]
    upcoming = [next(file, None) for file in files]
    draw = random.Random(f"paft mix {source.mix_seed}")
    while None not in upcoming:
        [at] = draw.choices(range(len(files)), list(source.shares.values()))
        row, upcoming[at] = upcoming[at], next(files[at], None)
        if row is not None:
            yield row


def _hub_split(source: HubSource, split: Split) -> str:
    return (source.validation_split or "") if split == "validation" else source.split


def _hub_rows(source: HubSource, split: str) -> Iterator[object]:
    from datasets import load_dataset

    try:
        rows = load_dataset(
            source.repo, source.name, revision=source.revision, split=split, data_dir=source.data_dir
        )
    except (OSError, ValueError) as error:
        what = f"{source.repo} at {source.revision:.12}"
        instead = "with its rows in files on this disk: data=jsonl data.sft.path=... data.preference.path=..."
        raise unavailable(what, f"datasets/{source.repo}", error, instead) from None
    yield from map(with_own_fields, rows)
