"""Rows of a source, with the place each came from; all bad rows are reported together, before any work.

Importing this module loads neither torch nor datasets nor pandas: a plan asks it what a source holds.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Generic, Literal, TypeVar

from paft.chat.conversation import Conversation, PreferencePair
from paft.config import BadRows, DemoSource, FileSource, HubSource, RowFormat, Source
from paft.data.demo import DemoSplit, demo_rows
from paft.data.files import READERS
from paft.data.held_out import draw, opening
from paft.data.rows import (
    conversation_format,
    ignored_fields,
    parse_conversation,
    parse_preference_pair,
    preference_format,
)
from paft.files.hub import unavailable

Split = Literal["train", "validation", "held_out"]
Row = TypeVar("Row", Conversation, PreferencePair)

MAX_REPORTED = 20
DEMO_VALIDATION_ROWS = 64


def has_validation(source: Source) -> bool:
    """Whether the source names held-out rows of its own; the demo always has some."""
    match source:
        case HubSource():
            return source.validation_split is not None
        case FileSource():
            return source.validation_path is not None
    return True


@dataclass(frozen=True)
class CheckedRows(Generic[Row]):
    """Typed rows of a source, all checked; iterating reads the source again and passes over the bad ones.

    There are bad ones only with `bad_rows=drop`.
    """

    source: Source
    split: Split
    parse: Callable[[object, RowFormat], Row]
    row_format: RowFormat
    num_rows: int
    num_bad: int
    ignored: dict[str, int] = field(default_factory=dict)
    """Field that says something and is not used -> number of good rows that have it; none of the embedded data."""
    held_out: frozenset[int] = frozenset()
    """Numbers, among the good rows from 0, of those that `train` leaves out and `held_out` is made of."""

    @property
    def label(self) -> str:
        """The source's file, repository or skill, for the log."""
        return _label(self.source, self.split)

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Iterator[tuple[str, Row]]:
        for number, located in enumerate(self._good()):
            if (number in self.held_out) is (self.split == "held_out"):
                yield located

    def _good(self) -> Iterator[tuple[str, Row]]:
        for location, row in _read(self.source, self.split):
            try:
                typed = self.parse(row, self.row_format)
            except ValueError:
                if self.source.bad_rows is BadRows.error:
                    raise
                continue
            yield location, typed


def conversations(source: Source, split: Split) -> CheckedRows[Conversation]:
    """All conversations of a source as (location, Conversation).

    Raises ValueError with file, row and field of the first 20 bad rows and how many there are in all.
    """
    return _checked(source, split, parse_conversation, conversation_format)


def preference_pairs(source: Source, split: Split) -> CheckedRows[PreferencePair]:
    """All preference pairs of a source as (location, PreferencePair); raises as `conversations` does."""
    return _checked(source, split, parse_preference_pair, preference_format)


def _checked(
    source: Source,
    split: Split,
    parse: Callable[[object, RowFormat], Row],
    detect: Callable[[object, RowFormat], RowFormat],
) -> CheckedRows[Row]:
    problems, openings, ignored, row_format = Problems(), list[str](), Counter[str](), None
    num_good = 0
    for location, row in _read(source, split):
        if isinstance(row, ValueError):
            problems.add(location, row)
            continue
        row_format = row_format or _detected(location, row, source.format, detect)
        try:
            typed = parse(row, row_format)
        except ValueError as error:
            problems.add(location, error)
            continue
        num_good += 1
        if source.held_out:  # a million texts are not kept for nothing
            openings.append(opening(typed))
        if not isinstance(source, DemoSource):
            ignored.update(ignored_fields(row, row_format))
    if source.bad_rows is BadRows.error:
        problems.raise_if_any()
    if row_format is None:
        raise ValueError(f"the {split} part of {_label(source, split)} holds no rows")
    held_out: frozenset[int] = frozenset()
    if source.held_out and split != "validation":
        held_out = draw(openings, source.held_out, source.held_out_seed)
    num_rows = len(held_out) if split == "held_out" else num_good - len(held_out)
    return CheckedRows(source, split, parse, row_format, num_rows, problems.count, dict(ignored), held_out)


def _detected(
    location: str, row: object, wanted: RowFormat, detect: Callable[[object, RowFormat], RowFormat]
) -> RowFormat:
    try:
        return detect(row, wanted)
    except ValueError as error:
        raise ValueError(f"{location}: {error}") from None


@dataclass
class Problems:
    """Faults of single rows: the first 20 are kept word for word, the others counted."""

    first: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, location: str, error: ValueError) -> None:
        self.count += 1
        if self.count <= MAX_REPORTED:
            self.first.append(f"{location}: {error}")

    def raise_if_any(self) -> None:
        if self.count:
            rest = f"\n... and {self.count - MAX_REPORTED} more" if self.count > MAX_REPORTED else ""
            lines = "\n".join(self.first)
            raise ValueError(
                f"{self.count} row(s) cannot be used; correct them, remove them or set bad_rows=drop:\n{lines}{rest}"
            )


# --- reading: (location, row), where an unreadable row is the ValueError that says why ------------------


def _read(source: Source, split: Split) -> Iterator[tuple[str, object]]:
    label = _label(source, split)
    numbered = islice(_numbered(source, split), source.max_rows)
    return ((f"{label}, row {number}", row) for number, row in numbered)


def _label(source: Source, split: Split) -> str:
    match source:
        case DemoSource():
            return f"demo {source.skill.value} {split}"
        case HubSource():
            return f"{source.repo} {_hub_split(source, split)}"
        case FileSource():
            return str(source.validation_path if split == "validation" else source.path)
    raise ValueError(f"source must be a DemoSource, HubSource or FileSource, got {type(source).__name__}")


def _numbered(source: Source, split: Split) -> Iterator[tuple[int, object]]:
    if not has_validation(source) and split == "validation":
        raise ValueError(
            f"{_label(source, 'train')} has no validation part; set its validation_split or validation_path"
        )
    match source:
        case DemoSource():
            part: DemoSplit = "validation" if split == "validation" else "train"
            num_rows = DEMO_VALIDATION_ROWS if part == "validation" else source.num_rows
            yield from enumerate(demo_rows(source.skill, split=part, num_rows=num_rows, seed=source.seed), 1)
        case HubSource():
            yield from enumerate(_hub_rows(source, _hub_split(source, split)), 1)
        case FileSource():
            path = _existing(_label(source, split))
            suffix = path.suffix.lower()
            if suffix not in READERS:
                raise ValueError(f"{path} must end in one of {', '.join(READERS)}, got {suffix!r}")
            yield from READERS[suffix](path)


def _existing(path: str | Path) -> Path:
    if not Path(path).is_file():
        raise ValueError(f"there is no file {path}; looked for it in {Path.cwd()}")
    return Path(path)


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
    yield from rows
