"""Whether a chat template wrote all that a row says: some pass over a system message, earlier thoughts or tools."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from paft.chat.conversation import Message, Tools

TEMPLATES = "remove it from the row, or set data.template=chatml, zephyr or llama3"
OTHERS = (
    "remove it from the row, or take a base whose own chat template writes it, with data.template=tokenizer"
)


def refuse_unwritten(messages: Sequence[Message], text: str, tools: Tools | None = None) -> None:
    """Raise `ValueError` for what a rendering of messages and tools does not hold.

    The thoughts of an answer that is not learnt may be missing: generation would not see them either.
    """
    for message in messages:
        if message["content"].strip() not in text:
            _refuse(f"a message of the {message['role']} as it is", message["content"], TEMPLATES)
        thought = message.get("reasoning_content") if message.get("train", True) else None
        if thought and thought.strip() not in text:
            _refuse("what an answer has as reasoning", thought, OTHERS)
        for call in message.get("tool_calls", ()):
            for said in texts_in(call["function"]):
                if not any(form in text for form in _forms(said)):
                    _refuse("a tool call as it is", said, OTHERS)
    for tool in tools or ():
        if str(tool["function"]["name"]) not in text:
            _refuse("the tool", tool["function"]["name"], OTHERS)


def _refuse(what: str, said: str, instead: str) -> None:
    raise ValueError(f"the chat template does not write {what}, {said!r:.60}; {instead}")


def _forms(said: str) -> tuple[str, ...]:
    """A text as it stands in an argument: alone, in JSON, or in Python."""
    return (said, json.dumps(said, ensure_ascii=False)[1:-1], json.dumps(said)[1:-1], repr(said)[1:-1])


def texts_in(value: Any) -> Iterator[str]:
    """Every text in lists and objects of any depth, names of fields too."""
    rest = [value]
    while rest:
        match rest.pop():
            case str(text):
                yield text
            case dict(fields):
                rest += [*fields, *fields.values()]
            case list(items):
                rest += items
