"""What only its tokens show of a row that parses: answers that are too long or equal, end markers of its own."""

from dataclasses import replace
from typing import Any, TypeVar

from paft.chat.conversation import Conversation, PreferencePair, TrainingRow, UnpairedRow, messages_of
from paft.chat.encode import unmarked, without_end
from paft.chat.tokens import Encoded, EncodedAnswer, EncodedPair
from paft.config import RowFormat, Source

Row = TypeVar("Row", Conversation, PreferencePair, UnpairedRow)

ANSWER_FIELDS = {
    RowFormat.messages: "messages (last answer)",
    RowFormat.prompt_completion: "completion",
    RowFormat.gsm8k: "answer",
    RowFormat.sharegpt: "conversations (last answer)",
    RowFormat.alpaca: "output",
}


def fault(
    row: TrainingRow, kept: Encoded | EncodedPair | EncodedAnswer, ends: tuple[str, ...]
) -> ValueError | None:
    """Why nothing can be learnt from a row of which the tokens `kept` are kept; `ends` are the `end_tokens`."""
    for message in messages_of(row):
        if "tool_calls" not in message and not without_end(message["content"], ends).strip():
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
    texts: dict[str, Any] = {
        name: unmarked(messages, ends) for name, messages in vars(row).items() if name != "tools"
    }
    return replace(row, **texts)


def excess(
    whole: Encoded | EncodedPair | EncodedAnswer, source: Source, row_format: RowFormat
) -> ValueError | None:
    """What is wrong if an answer fills `max_length` alone and leaves no token to the prompt."""
    limit = source.max_length
    for name, length in whole.answer_lengths.items():
        if length >= limit:
            field = ANSWER_FIELDS.get(row_format, name) if name == "answer" else name
            return ValueError(
                f"field {field!r} has {length} tokens, and with one of the "
                f"prompt exceeds max_length={limit}; raise it or set too_long=drop or truncate"
            )
    return None
