"""Turns of ShareGPT files, {from, value}, as messages; the names of speakers are those of LLaMA-Factory."""

from collections.abc import Mapping
from typing import Any

from paft.chat.conversation import Message
from paft.data.messages import as_messages

SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}
"""Name in `from` -> role; a `function_call` says what it calls in place of a text."""


def as_turns(value: Any, name: str) -> list[Message]:
    """Messages of a list of turns, or of one turn; those that have a role already stay as they are.

    Raises `ValueError` as `as_messages`, with the names that a turn has.
    """
    turns = [value] if isinstance(value, Mapping) else value
    if isinstance(turns, list):
        turns = [_as_message(turn, f"{name}[{at}]") for at, turn in enumerate(turns)]
    try:
        return as_messages(turns, name)
    except ValueError as error:
        raise ValueError(_in_words_of_turns(str(error), value)) from None


def _as_message(turn: Any, at: str) -> Any:
    if not isinstance(turn, Mapping) or "role" in turn:
        return turn
    speaker = turn.get("from")
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        raise ValueError(f"field '{at}.from' must be one of {', '.join(SPEAKERS)}, got {speaker!r:.60}")
    rest = {key: said for key, said in turn.items() if key not in ("from", "value")}
    said = "tool_calls" if speaker == "function_call" else "content"
    if said in rest:  # one of the two would vanish; `value` is no field of a message, so the row is refused
        return {"role": SPEAKERS[speaker], **rest, "value": turn.get("value")}
    return {"role": SPEAKERS[speaker], said: turn.get("value"), **rest}


def _in_words_of_turns(error: str, value: Any) -> str:
    turns = value if isinstance(value, list) else [value]
    if any(isinstance(turn, Mapping) and "role" in turn for turn in turns):
        return error
    return error.replace(".content'", ".value'").replace(".role'", ".from'").replace(".tool_calls", ".value")
