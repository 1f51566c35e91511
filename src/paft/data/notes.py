"""What is said of the good rows of a source: what they were taken for, and what of them is not used."""

import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath

from paft.chat.conversation import TrainingRow, beside_text, messages_of
from paft.config import RowFormat
from paft.config.formats import Shape
from paft.data.held_out import opening
from paft.data.reading import RawRow
from paft.data.rows import ignored_fields

log = logging.getLogger("paft")

PLACEHOLDER = re.compile(r"\{\{ ?\w+ ?\}\}")
"""As {{name}} in a text that is to be filled in."""


@dataclass
class Notes:
    keep_openings: bool = False
    num_rows: int = 0
    openings: list[str] = field(default_factory=list)
    """Of every row what the user says first, where that is to be kept: a million texts are not for nothing."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Field that says something and is not used -> rows that have it."""
    taken_for: dict[str, str] = field(default_factory=dict)
    """File -> format and fields of its first row."""
    placeholder: str = ""
    num_placeholders: int = 0
    """The first of them, and the rows that have one."""

    def add(
        self, raw: RawRow, row: TrainingRow, row_format: RowFormat, shapes: Mapping[RowFormat, Shape]
    ) -> None:
        shape = shapes[row_format]
        self.num_rows += 1
        if self.keep_openings:
            self.openings.append(opening(row))
        self.ignored.update(ignored_fields(raw.value, shape))
        if raw.file not in self.taken_for and isinstance(raw.value, Mapping):
            fields = ", ".join(name for name in raw.value if name in shape.used)
            self.taken_for[raw.file] = f"{row_format.value} ({fields})"
        if text := _placeholder(row):
            self.placeholder = self.placeholder or text
            self.num_placeholders += 1

    @property
    def read_as(self) -> str:
        """What the rows were taken for, by file where files differ."""
        distinct = set(self.taken_for.values())
        if len(distinct) == 1:
            return distinct.pop()
        return "; ".join(f"{PurePath(file).name}: {what}" for file, what in self.taken_for.items())

    def log(self, source: str, num_rows: int) -> None:
        log.info("%s: %d rows read as %s", source, num_rows, self.read_as)
        if self.num_placeholders:
            log.warning(
                "%s: %d of the rows hold text as %s, which is learnt as it is written; fill it in if it is meant to be",
                source, self.num_placeholders, self.placeholder,
            )  # fmt: skip


def refuse_beside_text(row: TrainingRow) -> None:
    """Raise `ValueError` for a row of which a task could read only a part."""
    if more := beside_text(messages_of(row), row.tools):
        raise ValueError(
            f"it has {', '.join(more)}, which no task made of held-out rows reads; set held_out=0 or remove the row"
        )


def _placeholder(row: TrainingRow) -> str:
    """The first in a row; empty where there is none."""
    texts = (message["content"] for message in messages_of(row) if "{{" in message["content"])
    return next((match[0] for text in texts if (match := PLACEHOLDER.search(text))), "")
