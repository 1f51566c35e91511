"""What only the tokenizer shows of a row that parses: end markers of its own, and answers of equal tokens."""

from typing import TypeVar

from paft.data.chat import Encoded, EncodedPair, without_marker
from paft.data.rows import Conversation, Message, PreferencePair

Row = TypeVar("Row", Conversation, PreferencePair)


def fault(row: Conversation | PreferencePair, kept: Encoded | EncodedPair, marker: str) -> ValueError | None:
    """Why nothing can be learnt from a row whose tokens, as far as they are kept, are `kept`; `marker` ends a turn."""
    messages = row.messages if isinstance(row, Conversation) else [*row.prompt, *row.chosen, *row.rejected]
    for message in messages:
        if not without_marker(message["content"], marker).strip():
            return ValueError(
                f"a message of role {message['role']!r} says nothing but {marker!r}, the end of a turn"
            )
    if isinstance(kept, EncodedPair) and kept.chosen_ids == kept.rejected_ids:
        return ValueError(
            f"fields 'chosen' and 'rejected' have the same tokens up to {marker!r} or the cut at max_length, so the "
            "row states no preference"
        )
    return None


def without_markers(row: Row, marker: str) -> Row:
    """The row as text without the end markers that it brings itself."""
    return type(row)(**{name: _unmarked(messages, marker) for name, messages in vars(row).items()})


def _unmarked(messages: list[Message], marker: str) -> list[Message]:
    return [{**message, "content": without_marker(message["content"], marker)} for message in messages]
