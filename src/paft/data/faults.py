"""What only the tokenizer shows of a row that parses: end markers of its own, and answers of equal tokens."""

from typing import TypeVar

from paft.data.chat import Encoded, EncodedPair, without_end
from paft.data.rows import Conversation, Message, PreferencePair

Row = TypeVar("Row", Conversation, PreferencePair)


def fault(
    row: Conversation | PreferencePair, kept: Encoded | EncodedPair, ends: tuple[str, ...]
) -> ValueError | None:
    """Why nothing can be learnt from a row of which the tokens `kept` are kept; `ends` are the `end_tokens`."""
    messages = row.messages if isinstance(row, Conversation) else [*row.prompt, *row.chosen, *row.rejected]
    for message in messages:
        if not without_end(message["content"], ends).strip():
            return ValueError(
                f"a message of role {message['role']!r} says nothing but {ends[0]!r}, the end of a turn"
            )
    if isinstance(kept, EncodedPair) and kept.chosen_ids == kept.rejected_ids:
        return ValueError(
            f"fields 'chosen' and 'rejected' have the same tokens up to {ends[0]!r} or the cut at max_length, so the "
            "row states no preference"
        )
    return None


def without_ends(row: Row, ends: tuple[str, ...]) -> Row:
    """The row as text without the ends that it brings itself."""
    return type(row)(**{name: _unmarked(messages, ends) for name, messages in vars(row).items()})


def _unmarked(messages: list[Message], ends: tuple[str, ...]) -> list[Message]:
    return [{**message, "content": without_end(message["content"], ends)} for message in messages]
