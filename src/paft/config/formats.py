"""The formats of a row: by which fields each is recognised, and which others it reads."""

from collections.abc import Container
from dataclasses import dataclass
from enum import Enum


class RowFormat(str, Enum):
    """How a row of a source is read; `auto` decides by the columns of each file's first row. docs/data.md has their
    fields."""

    auto = "auto"
    messages = "messages"
    prompt_completion = "prompt_completion"
    preference = "preference"
    gsm8k = "gsm8k"
    hh = "hh"
    sharegpt = "sharegpt"
    alpaca = "alpaca"
    chosen_messages = "chosen_messages"


@dataclass(frozen=True)
class Shape:
    """The fields of a row in one format."""

    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()

    @property
    def used(self) -> frozenset[str]:
        return frozenset(self.needed + self.optional)

    def holds(self, columns: Container[str]) -> bool:
        """Whether a row with these columns has the needed fields."""
        return all(name in columns for name in self.needed)


CONVERSATIONS: dict[RowFormat, Shape] = {
    RowFormat.messages: Shape(("messages",), ("tools",)),
    RowFormat.prompt_completion: Shape(("prompt", "completion"), ("tools",)),
    RowFormat.gsm8k: Shape(("question", "answer")),
    RowFormat.sharegpt: Shape(("conversations",), ("system", "tools")),
    RowFormat.alpaca: Shape(("instruction", "output"), ("input", "history", "system", "tools")),
}
"""What a row of the SFT branch may look like. The first format whose needed fields a row has is taken for its own."""

PAIRS: dict[RowFormat, Shape] = {
    RowFormat.chosen_messages: Shape(("chosen_messages", "rejected_messages"), ("tools",)),
    RowFormat.sharegpt: Shape(("conversations", "chosen", "rejected"), ("system", "tools")),
    RowFormat.alpaca: Shape(("instruction", "chosen", "rejected"), ("input", "history", "system", "tools")),
    RowFormat.preference: Shape(("chosen", "rejected"), ("prompt", "tools")),
    RowFormat.hh: Shape(("chosen", "rejected")),
}
"""What a row of pairs of answers may look like."""

UNPAIRED: dict[RowFormat, Shape] = {
    name: Shape((*shape.needed, "label"), shape.optional)
    for name, shape in CONVERSATIONS.items()
    if name is not RowFormat.gsm8k
}
"""What a row of one answer and a judgement of it may look like: a conversation and its label."""

FIELDS = sorted(
    {name for shapes in (CONVERSATIONS, PAIRS, UNPAIRED) for s in shapes.values() for name in s.used}
)
"""Every field that some format reads."""
