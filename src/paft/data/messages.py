"""Messages: who says what, and whether it is learnt. Every function raises `ValueError` naming the field."""

from collections.abc import Mapping, Set
from typing import Any

from paft.chat.conversation import Message
from paft.data.fields import learnt, refuse_unread_of_message
from paft.data.written import goes_on, message_list, transcript

ROLES = ("system", "user", "assistant")


def as_text(value: object, name: str) -> str:
    """`value`, if it is a text of more than white space."""
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


def as_messages(value: object, name: str) -> list[Message]:
    """Messages with known roles and some content each; their order is not looked at."""
    if not isinstance(value, list):
        raise ValueError(f"field {name!r} must be a list of messages, got {type(value).__name__}")
    if not value:
        raise ValueError(f"field {name!r} is empty")
    return [_message(message, f"{name}[{at}]") for at, message in enumerate(value)]


def _message(value: object, name: str) -> Message:
    if not isinstance(value, Mapping):
        raise ValueError(f"field {name!r} must hold role and content, got {type(value).__name__}")
    role = as_text(value.get("role"), f"{name}.role")
    if role not in ROLES:
        raise ValueError(f"field '{name}.role' must be one of {', '.join(ROLES)}, got {role!r:.60}")
    if len(value) == 2:
        return {"role": role, "content": _content(value.get("content"), name, role)}
    refuse_unread_of_message(value, name)
    train = learnt(value, f"{name}.")
    if train and role != "assistant":
        raise ValueError(f"field {name!r} asks to learn a message of role {role!r}; only answers are learnt")
    message: Message = {"role": role, "content": _content(value.get("content"), name, role)}
    return message if train is None or role != "assistant" else {**message, "train": train}


def _content(value: object, name: str, role: str) -> str:
    """A text, or the text of the one part that some formats write as a list."""
    name = f"{name}.content"
    match value:
        case [{"type": "text", **part}] if len(texts := [t for t in part.values() if t is not None]) == 1:
            value = texts[0] if {"text", "value"} & part.keys() else value
    content = as_text(value, name)
    if role == "user" and _is_hh(content):
        refuse_transcript(content, name)
    if role == "user" and _written_list(content, name) is not None:
        raise ValueError(
            f"field {name!r} is a list of messages written as text; write each as a message of its own"
        )
    return content


def _is_hh(text: str) -> bool:
    """Whether a text is as a prompt of Anthropic/hh-rlhf, and not one in which somebody quotes a conversation."""
    opens, asks = text.rstrip().endswith("\n\nAssistant:"), text.lstrip().startswith("Human:")
    return opens or (asks and "\n\nAssistant:" in text)


def refuse_transcript(text: str, name: str) -> None:
    if written_turns(text, name) is not None:
        raise ValueError(
            f"field {name!r} is a transcript of several turns; write each as a message of its own"
        )


def written_turns(text: str, name: str) -> list[Message] | None:
    """The turns of a transcript, the last of them dropped if nothing is said in it; None for any other text."""
    try:
        turns = transcript(text)
    except ValueError as error:
        raise ValueError(f"field {name!r} {error}") from None
    if turns is None:
        return None
    return as_messages(turns if turns[-1]["content"] else turns[:-1], name)


def in_order(messages: list[Message], name: str, *, last: str, repeats: bool = False) -> list[Message]:
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


def to_last_learnt(messages: list[Message]) -> list[Message]:
    """The messages up to the last answer that is learnt, of which those that are not have `train` false."""
    answers = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    learnt = [at for at in answers if messages[at].get("train", True)]
    if not learnt:
        raise ValueError(
            "the fields with weights or flags leave no answer of the row to be learnt; remove the row"
        )
    return [unflagged(message) if message.get("train") else message for message in messages[: learnt[-1] + 1]]


def unflagged(message: Message) -> Message:
    return {"role": message["role"], "content": message["content"]}


# --- prompts and answers ------------------------------------------------------------------------------


def as_prompt(value: object, name: str) -> list[Message]:
    """A prompt given as text, as a transcript or as a list of messages; it ends with the user."""
    if isinstance(value, str):
        messages = written_turns(as_text(value, name), name)
        if messages is None:
            return [{"role": "user", "content": value}]
    else:
        messages = as_messages(value, name)
    return in_order(messages, name, last="user", repeats=True)


def as_answer(value: object, name: str) -> list[Message]:
    """An answer given as text or as a list of messages, which may repeat the prompt before it, as a transcript does."""
    if isinstance(value, str):
        messages = written_turns(as_text(value, name), name)
        if messages is None:
            return [_said(value, name)]
    else:
        messages = as_messages(value, name)
    alone = len(messages) == 1 and messages[0]["role"] == "assistant"
    return messages if alone else in_order(messages, name, last="assistant", repeats=True)


def as_text_answer(value: object, name: str) -> Message:
    """An answer given as text alone."""
    text = as_text(value, name)
    refuse_transcript(text, name)
    return _said(text, name)


def _said(text: str, name: str) -> Message:
    if text.lstrip("\n #*<").startswith("Assistant:"):
        raise ValueError(
            f"field {name!r} begins with 'Assistant:', as a turn of a transcript; write what is said alone"
        )
    if goes_on(text):
        raise ValueError(
            f"field {name!r} goes on with turns of a transcript after the answer; cut it before them"
        )
    return {"role": "assistant", "content": text}


def bare(answers: list[Message], prompt: object) -> list[Message]:
    """Answers without the white space around them, if they follow a prompt that is a transcript."""
    if not isinstance(prompt, str) or transcript(prompt) is None:
        return answers
    return [{**answer, "content": answer["content"].strip()} for answer in answers]


# --- lists of messages written as text ----------------------------------------------------------------


def listed_messages(row: Mapping[str, Any], columns: Set[str]) -> Mapping[str, Any]:
    """The row with lists of messages where a column holds one as text, as in CSV."""
    texts = {name: row[name] for name in columns & row.keys() if isinstance(row[name], str)}
    lists = {name: _written_list(text, name) for name, text in texts.items()}
    found = {name: messages for name, messages in lists.items() if messages is not None}
    return {**row, **found} if found else row


def _written_list(text: str, name: str) -> list[Any] | None:
    try:
        return message_list(text)
    except ValueError as error:
        raise ValueError(f"field {name!r} {error}") from None
