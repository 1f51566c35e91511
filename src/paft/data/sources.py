"""Rows of a source, with the place each came from; all bad rows are reported together, before any work.

Importing this module loads neither torch nor datasets nor pandas: a plan asks it what a source holds.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from paft.chat.conversation import Conversation, PreferencePair, UnpairedRow
from paft.config import Answers, BadRows, DemoSource, RowFormat, Source
from paft.config.formats import CONVERSATIONS, PAIRS, UNPAIRED, Shape
from paft.data.held_out import draw
from paft.data.notes import Notes, refuse_beside_text
from paft.data.reading import (
    DEMO_VALIDATION_ROWS,
    RawRow,
    Split,
    file_of,
    label_of,
    raw_rows,
)
from paft.data.rows import (
    conversation_format,
    in_words_of_file,
    parse_conversation,
    parse_last_answer,
    parse_preference_pair,
    parse_unpaired,
    preference_format,
    shows_pair,
    unpaired_format,
)

__all__ = [
    "DEMO_VALIDATION_ROWS",
    "CheckedRows",
    "Problems",
    "Split",
    "conversations",
    "holds_pairs",
    "preference_pairs",
    "unpaired_rows",
]

Row = TypeVar("Row", Conversation, PreferencePair, UnpairedRow)


MAX_REPORTED = 20


@dataclass(frozen=True)
class Kind(Generic[Row]):
    """A kind of training row: how a raw one becomes it, and by which fields."""

    parse: Callable[[object, RowFormat], Row]
    detect: Callable[[object, RowFormat], RowFormat]
    shapes: Mapping[RowFormat, Shape]


CONVERSATION = Kind(parse_conversation, conversation_format, CONVERSATIONS)
LAST_ANSWER = Kind(parse_last_answer, conversation_format, CONVERSATIONS)
PAIR = Kind(parse_preference_pair, preference_format, PAIRS)
JUDGED = Kind(parse_unpaired, unpaired_format, UNPAIRED)


@dataclass(frozen=True)
class CheckedRows(Generic[Row]):
    """Typed rows of a source, all checked; iterating reads the source again and passes over the bad ones.

    There are bad ones only with `bad_rows=drop`.
    """

    source: Source
    split: Split
    kind: Kind[Row]
    formats: dict[str, RowFormat]
    """File -> the format its rows are in."""
    num_rows: int
    num_bad: int
    read_as: str = ""
    """What the rows were taken for, as `alpaca (instruction, output)`; empty of the embedded data."""
    ignored: dict[str, int] = field(default_factory=dict)
    """Field that says something and is not used -> number of good rows that have it; none of the embedded data."""
    held_out: frozenset[int] = frozenset()
    """Numbers, among the good rows from 0, of those that `train` leaves out and `held_out` is made of."""

    @property
    def label(self) -> str:
        """The source's files, repository or skill, for the log."""
        return label_of(self.source, self.split)

    @property
    def row_format(self) -> RowFormat:
        """That of the first file; `format_at` tells files apart."""
        return next(iter(self.formats.values()))

    def format_at(self, location: str) -> RowFormat:
        """That of the file in which a row stands."""
        return self.formats[file_of(location)]

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Iterator[tuple[str, Row]]:
        for number, located in enumerate(self._good()):
            if (number in self.held_out) is (self.split == "held_out"):
                yield located

    def _good(self) -> Iterator[tuple[str, Row]]:
        for raw in raw_rows(self.source, self.split):
            try:
                row = _parsed(raw, self.source, self.kind, self.formats)
            except ValueError:
                if self.source.bad_rows is BadRows.error:
                    raise
                continue
            yield raw.place, row


def conversations(source: Source, split: Split) -> CheckedRows[Conversation]:
    """All conversations of a source as (location, Conversation).

    Raises ValueError with file, row and field of the first 20 bad rows and how many there are in all.
    """
    return _checked(source, split, LAST_ANSWER if source.answers is Answers.last else CONVERSATION)


def preference_pairs(source: Source, split: Split) -> CheckedRows[PreferencePair]:
    """All preference pairs of a source as (location, PreferencePair); raises as `conversations` does."""
    return _checked(source, split, PAIR)


def unpaired_rows(source: Source, split: Split) -> CheckedRows[UnpairedRow]:
    """All judged answers of a source as (location, UnpairedRow); raises as `conversations` does."""
    return _checked(source, split, JUDGED)


def holds_pairs(source: Source) -> bool:
    """Whether the first row of the training part that can be read is a pair."""
    rows = (raw.value for raw in raw_rows(source, "train") if not isinstance(raw.value, ValueError))
    return shows_pair(next(rows, None), source.format)


def _checked(source: Source, split: Split, kind: Kind[Row]) -> CheckedRows[Row]:
    problems, notes, formats = Problems(), Notes(keep_openings=source.held_out > 0), dict[str, RowFormat]()
    for raw in raw_rows(source, split):
        if raw.file not in formats and not isinstance(raw.value, ValueError):
            formats[raw.file] = _detected(raw, source, kind)
        try:
            row = _parsed(raw, source, kind, formats)
        except ValueError as error:
            problems.add(raw.place, error)
            continue
        notes.add(raw, row, formats[raw.file], kind.shapes)
    if source.bad_rows is BadRows.error:
        problems.raise_if_any()
    if not formats:
        raise ValueError(_no_rows(source, split, problems))
    held_out: frozenset[int] = frozenset()
    if source.held_out and split != "validation":
        held_out = draw(notes.openings, source.held_out, source.held_out_seed)
    num_rows = len(held_out) if split == "held_out" else notes.num_rows - len(held_out)
    rows = CheckedRows(source, split, kind, formats, num_rows, problems.count, held_out=held_out)
    if isinstance(source, DemoSource):
        return rows
    if split != "held_out":  # which are of the same rows
        notes.log(f"{split} of {rows.label}", num_rows)
    return replace(rows, read_as=notes.read_as, ignored=dict(notes.ignored))


def _no_rows(source: Source, split: Split, problems: "Problems") -> str:
    first = f"; all {problems.count} are bad, the first is {problems.first[0]}" if problems.count else ""
    return f"the {split} part of {label_of(source, split)} holds no rows that can be read{first}"


def _detected(raw: RawRow, source: Source, kind: Kind[Row]) -> RowFormat:
    try:
        return kind.detect(raw.value, source.format)
    except ValueError as error:
        raise ValueError(f"{raw.place}: {error}") from None


def _parsed(raw: RawRow, source: Source, kind: Kind[Row], formats: Mapping[str, RowFormat]) -> Row:
    """The typed row, in the format of its file. Raises `ValueError` for a bad one."""
    if isinstance(raw.value, ValueError):
        raise raw.value
    try:
        row = kind.parse(raw.value, formats[raw.file])
    except ValueError as error:
        raise in_words_of_file(error, source.columns) from None
    if source.held_out:
        refuse_beside_text(row)
    return row


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
