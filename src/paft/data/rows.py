"""The two kinds of training row, and how each accepted row format becomes one of them.

Parsing is pure and strict: a row is either exactly one `Conversation` or `PreferencePair`, or a
ValueError that names the field. Where the row came from is added by `paft.data.sources`.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from paft.config import RowFormat

ROLES = ("system", "user", "assistant")
HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
CONVERSATION_COLUMNS = {
    RowFormat.messages: {"messages"},
    RowFormat.prompt_completion: {"prompt", "completion"},
    RowFormat.gsm8k: {"question", "answer"},
}
PREFERENCE_COLUMNS = {RowFormat.preference: {"chosen", "rejected"}, RowFormat.hh: {"chosen", "rejected"}}
HH_ROLES = {"Human": "user", "Assistant": "assistant"}


class Message(TypedDict):
    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """An optional system message, then user and assistant in turn, ending with the assistant."""

    messages: list[Message]


@dataclass(frozen=True)
class PreferencePair:
    """A prompt that ends with the user, and two different answers of one assistant message each.

    Earlier in the prompt the assistant may speak twice in a row.
    """

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]


def parse_conversation(row: object, row_format: RowFormat) -> Conversation:
    """The conversation a raw row holds; columns the format does not name are ignored.

    Raises ValueError naming the field that is missing, empty, of the wrong type or in the wrong order.
    """
    return Conversation(CONVERSATION_PARSERS[row_format](_columns(row)))


def parse_preference_pair(row: object, row_format: RowFormat) -> PreferencePair:
    """The preference pair a raw row holds; columns the format does not name are ignored.

    Raises ValueError naming the field that is missing, empty, of the wrong type or in the wrong order,
    also if chosen and rejected are the same or answer different prompts.
    """
    pair = PAIR_PARSERS[row_format](_columns(row))
    if pair.chosen == pair.rejected:
        raise ValueError("fields 'chosen' and 'rejected' are identical, so the row states no preference")
    return pair


def conversation_format(row: object, wanted: RowFormat) -> RowFormat:
    """`wanted`, or for `auto` the format that the columns of `row` show."""
    columns = set(_columns(row))
    if wanted is RowFormat.auto:
        for found, needed in CONVERSATION_COLUMNS.items():
            if needed <= columns:
                return found
    if wanted not in CONVERSATION_PARSERS:
        raise ValueError(_unknown_format(wanted, columns, "conversations", CONVERSATION_COLUMNS))
    return wanted


def preference_format(row: object, wanted: RowFormat) -> RowFormat:
    """`wanted`, or for `auto` the format that the columns of `row` show."""
    columns = _columns(row)
    if wanted is RowFormat.auto and PREFERENCE_COLUMNS[RowFormat.preference] <= set(columns):
        return RowFormat.hh if _is_transcript(columns) else RowFormat.preference
    if wanted not in PAIR_PARSERS:
        raise ValueError(_unknown_format(wanted, set(columns), "preference pairs", PREFERENCE_COLUMNS))
    return wanted


def _is_transcript(row: Mapping[str, Any]) -> bool:
    chosen = row["chosen"]
    return "prompt" not in row and isinstance(chosen, str) and chosen.lstrip().startswith("Human:")


def _unknown_format(
    wanted: RowFormat, columns: set[str], kind: str, accepted: Mapping[RowFormat, set[str]]
) -> str:
    listed = "; ".join(f"{name.value}: {', '.join(sorted(needed))}" for name, needed in accepted.items())
    return (
        f"format={wanted.value} finds no {kind} in the columns {_listed(columns)}; accepted are the formats "
        f"(with their columns) {listed}. Rename the columns or set the source's format"
    )


def _listed(columns: Iterable[object]) -> str:
    """Some columns by name, however many there are and however long their names."""
    names = [f"{name!r:.40}" for name in sorted(map(str, columns))]
    return f"[{', '.join(names[:12])}]" + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _columns(row: object) -> Mapping[str, Any]:
    if not isinstance(row, Mapping):
        raise ValueError(f"a row must be an object with named columns, got {type(row).__name__}")
    return row


# --- fields ------------------------------------------------------------------------------------------


def _field(row: Mapping[str, Any], name: str) -> Any:
    if row.get(name) is None:
        raise ValueError(f"field {name!r} is missing; the row has {_listed(row)}")
    return row[name]


def _text(value: object, name: str) -> str:
    if value is None:
        raise ValueError(f"field {name!r} is missing")
    if not isinstance(value, str):
        raise ValueError(f"field {name!r} must be text, got {type(value).__name__}")
    if not value.strip():
        raise ValueError(f"field {name!r} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"field {name!r} holds half a surrogate pair at character {error.start + 1}, which is no text; "
            "write the whole character or remove it"
        ) from None
    return value


def _messages(value: object, name: str) -> list[Message]:
    """Messages with known roles and some content each; their order is not looked at."""
    if not isinstance(value, list):
        raise ValueError(f"field {name!r} must be a list of messages, got {type(value).__name__}")
    if not value:
        raise ValueError(f"field {name!r} is empty")
    return [_message(message, f"{name}[{at}]") for at, message in enumerate(value)]


def _message(value: object, name: str) -> Message:
    if not isinstance(value, Mapping):
        raise ValueError(f"field {name!r} must hold role and content, got {type(value).__name__}")
    role = _text(value.get("role"), f"{name}.role")
    if role not in ROLES:
        raise ValueError(f"field '{name}.role' must be one of {', '.join(ROLES)}, got {role!r:.60}")
    return {"role": role, "content": _text(value.get("content"), f"{name}.content")}


def _in_order(messages: list[Message], name: str, *, last: str, repeats: bool = False) -> list[Message]:
    """`messages`, once it is system?, user, assistant, user, ... and ends with the role `last`.

    With `repeats` the assistant may speak twice in a row, as it does in some transcripts of real chats.
    """
    start = 1 if messages[0]["role"] == "system" else 0
    previous = "assistant"
    for at, role in enumerate((message["role"] for message in messages[start:]), start):
        expected = "user" if previous == "assistant" else "assistant"
        if role != expected and not (repeats and at > start and role == previous == "assistant"):
            raise ValueError(
                f"field '{name}[{at}].role' must be {expected!r} here, got {role!r}; "
                "after an optional system message, user and assistant take turns"
            )
        previous = role
    if messages[-1]["role"] != last:
        raise ValueError(f"field {name!r} must end with role {last!r}, got {messages[-1]['role']!r}")
    return messages


def _prompt(value: object, name: str) -> list[Message]:
    if isinstance(value, str):
        return [{"role": "user", "content": _text(value, name)}]
    return _in_order(_messages(value, name), name, last="user", repeats=True)


def _answer(value: object, name: str) -> list[Message]:
    """An answer given as text or as a list of messages, which may repeat the prompt before it."""
    if isinstance(value, str):
        return [{"role": "assistant", "content": _text(value, name)}]
    messages = _messages(value, name)
    alone = len(messages) == 1 and messages[0]["role"] == "assistant"
    return messages if alone else _in_order(messages, name, last="assistant", repeats=True)


# --- formats -----------------------------------------------------------------------------------------


def _from_messages(row: Mapping[str, Any]) -> list[Message]:
    return _in_order(_messages(_field(row, "messages"), "messages"), "messages", last="assistant")


def _from_prompt_completion(row: Mapping[str, Any]) -> list[Message]:
    prompt, completion = _prompt(_field(row, "prompt"), "prompt"), _field(row, "completion")
    if isinstance(completion, str):
        return [*prompt, {"role": "assistant", "content": _text(completion, "completion")}]
    messages = _messages(completion, "completion")
    return _in_order([*prompt, *messages], "prompt + completion", last="assistant")


def _from_gsm8k(row: Mapping[str, Any]) -> list[Message]:
    question, answer = _text(_field(row, "question"), "question"), _text(_field(row, "answer"), "answer")
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _from_preference(row: Mapping[str, Any]) -> PreferencePair:
    """Explicit (`prompt` given) or implicit (both answers are whole conversations from the same prompt)."""
    chosen, rejected = (_answer(_field(row, name), name) for name in ("chosen", "rejected"))
    if row.get("prompt") is None:
        return _whole_conversations(chosen, rejected)
    prompt = _prompt(row["prompt"], "prompt")
    if len(chosen) == len(rejected) == 1:
        return PreferencePair(prompt, chosen, rejected)
    pair = _whole_conversations(chosen, rejected)
    if not _repeats(pair.prompt, row["prompt"], prompt):
        raise ValueError("fields 'chosen' and 'rejected' do not begin with the field 'prompt'")
    return pair


def _repeats(found: list[Message], given: object, prompt: list[Message]) -> bool:
    """A prompt given as text is one of the user's turns: the first in some data sets, the last in others."""
    if not isinstance(given, str):
        return found == prompt
    return given.strip() in (message["content"].strip() for message in found if message["role"] == "user")


def _whole_conversations(chosen: list[Message], rejected: list[Message]) -> PreferencePair:
    for name, messages in (("chosen", chosen), ("rejected", rejected)):
        if len(messages) < 2:
            raise ValueError(
                f"field {name!r} is an answer without its prompt; give both or add a field 'prompt'"
            )
    if chosen[:-1] != rejected[:-1]:
        raise ValueError(
            "fields 'chosen' and 'rejected' have different prompts; only the last answer may differ"
        )
    return PreferencePair(chosen[:-1], chosen[-1:], rejected[-1:])


def _from_hh(row: Mapping[str, Any]) -> PreferencePair:
    return _whole_conversations(*(_transcript(_field(row, name), name) for name in ("chosen", "rejected")))


def _transcript(value: object, name: str) -> list[Message]:
    """Turns of an Anthropic/hh-rlhf transcript: blank line, `Human:` or `Assistant:`, text."""
    before, *parts = HH_TURN.split(_text(value, name))
    if before.strip() or not parts:
        raise ValueError(f"field {name!r} must begin with a blank line and 'Human:', got {value!r:.60}")
    speakers, texts = parts[::2], parts[1::2]
    turns = [
        {"role": HH_ROLES[who], "content": text.strip()} for who, text in zip(speakers, texts, strict=True)
    ]
    return _in_order(_messages(turns, name), name, last="assistant", repeats=True)


CONVERSATION_PARSERS: dict[RowFormat, Callable[[Mapping[str, Any]], list[Message]]] = {
    RowFormat.messages: _from_messages,
    RowFormat.prompt_completion: _from_prompt_completion,
    RowFormat.gsm8k: _from_gsm8k,
}
PAIR_PARSERS: dict[RowFormat, Callable[[Mapping[str, Any]], PreferencePair]] = {
    RowFormat.preference: _from_preference,
    RowFormat.hh: _from_hh,
}
