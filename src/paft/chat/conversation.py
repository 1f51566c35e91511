"""A conversation, a prompt with two answers, an answer with a judgement: what a row of any format is read as."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired, TypedDict

Tools = list[dict[str, Any]]
"""What can be called, each as {"type": "function", "function": {name, description, parameters}}."""


class Function(TypedDict):
    name: str
    arguments: dict[str, Any]


class ToolCall(TypedDict):
    type: Literal["function"]
    function: Function
    id: NotRequired[str]


class Message(TypedDict):
    role: str
    content: str
    """Empty only in an answer that calls tools."""
    train: NotRequired[bool]
    """Whether an answer is learnt; absent: yes."""
    tool_calls: NotRequired[list[ToolCall]]
    """What an answer calls."""
    reasoning_content: NotRequired[str]
    """What is thought before an answer."""
    name: NotRequired[str]
    """The tool whose result a message of role `tool` is."""
    tool_call_id: NotRequired[str]
    """The call whose result it is."""


@dataclass(frozen=True)
class Conversation:
    """An optional system message, then user and assistant in turn, ending with an answer that is learnt.

    Behind an answer that calls tools stand their results, of role `tool`, and then the assistant again.
    """

    messages: list[Message]
    tools: Tools = field(default_factory=list)


@dataclass(frozen=True)
class PreferencePair:
    """A prompt that ends with the user or a tool, and two different answers of one assistant message each.

    Earlier in the prompt the assistant may speak twice in a row.
    """

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    tools: Tools = field(default_factory=list)


@dataclass(frozen=True)
class UnpairedRow:
    """A prompt that ends with the user or a tool, one answer of one assistant message, and whether it is a good one."""

    prompt: list[Message]
    completion: list[Message]
    label: bool
    tools: Tools = field(default_factory=list)


TrainingRow = Conversation | PreferencePair | UnpairedRow


def messages_of(row: TrainingRow) -> list[Message]:
    """Every message of a row, in the order of its fields."""
    parts = (part for name, part in vars(row).items() if name not in ("tools", "label"))
    return [message for part in parts for message in part]


TOOLS = ("tools", "tool calls", "results of tools")


def beside_text(messages: Sequence[Message], tools: Tools) -> list[str]:
    """What a row holds that not every chat template writes: any of `TOOLS`, and reasoning."""
    there = {
        "tools": bool(tools),
        "tool calls": any("tool_calls" in message for message in messages),
        "results of tools": any(message["role"] == "tool" for message in messages),
        "reasoning": any("reasoning_content" in message for message in messages),
    }
    return [kind for kind, holds in there.items() if holds]
