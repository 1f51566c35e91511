"""A conversation, and a prompt with two answers: what a row of any format is read as."""

from dataclasses import dataclass
from typing import NotRequired, TypedDict


class Message(TypedDict):
    role: str
    content: str
    train: NotRequired[bool]
    """Whether an answer is learnt; absent: yes."""


@dataclass(frozen=True)
class Conversation:
    """An optional system message, then user and assistant in turn, ending with an answer that is learnt."""

    messages: list[Message]


@dataclass(frozen=True)
class PreferencePair:
    """A prompt that ends with the user, and two different answers of one assistant message each.

    Earlier in the prompt the assistant may speak twice in a row.
    """

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
