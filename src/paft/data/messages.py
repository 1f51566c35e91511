"""Messages: who says what, and whether it is learnt. Every function raises `ValueError` naming the field."""

from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any, cast

from paft.chat.conversation import Conversation, Message
from paft.data.fields import REASONING, is_blank, refuse_unread_of_message
from paft.data.parts import flags, joined
from paft.data.texts import as_text
from paft.data.tools import as_calls
from paft.data.written import goes_on, message_list, transcript

ROLES = ("system", "user", "assistant", "tool")


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
    content = value.get("content")
    if len(value) == 2 and isinstance(content, str):
        return {"role": role, "content": _content(content, name, role)}
    refuse_unread_of_message(value, name)
    beside = _beside(value, name, role)
    content = joined(content, f"{name}.content")
    silent = "tool_calls" in beside and (
        content is None or (isinstance(content, str) and not content.strip())
    )
    text = "" if silent else _content(content, name, role)
    return {"role": role, "content": text, **beside, **_flag(value, name, role)}  # type: ignore[typeddict-item]


def _flag(value: Mapping[str, Any], name: str, role: str) -> dict[str, bool]:
    """`train`, where a flag says whether an answer is learnt."""
    said = set(flags(value, name))
    if len(said) > 1:
        raise ValueError(f"the weights of field {name!r} and its parts contradict each other; keep one")
    if True in said and role != "assistant":
        raise ValueError(f"field {name!r} asks to learn a message of role {role!r}; only answers are learnt")
    return {"train": said.pop()} if said and role == "assistant" else {}


def _beside(value: Mapping[str, Any], name: str, role: str) -> dict[str, Any]:
    """What an answer calls and thinks, and whose result a message is."""
    given = {key: said for key, said in value.items() if not is_blank(said)}
    if role == "tool":
        return {key: as_text(given[key], f"{name}.{key}") for key in ("name", "tool_call_id") if key in given}
    if role != "assistant":
        return {}
    calls = [as_calls(given[key], f"{name}.{key}") for key in ("tool_calls", "function_call") if key in given]
    thoughts = list(dict.fromkeys(as_text(given[key], f"{name}.{key}") for key in REASONING if key in given))
    if len(calls) > 1 or len(thoughts) > 1:
        twice = (
            "tool_calls and function_call"
            if len(calls) > 1
            else " and ".join(k for k in REASONING if k in given)
        )
        raise ValueError(f"field {name!r} has {twice}, of which only one can be meant; remove the other")
    return ({"tool_calls": calls[0]} if calls else {}) | (
        {"reasoning_content": thoughts[0]} if thoughts else {}
    )


def _content(value: object, name: str, role: str) -> str:
    name = f"{name}.content"
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


def in_order(
    messages: list[Message], name: str, *, last: str, repeats: bool = False, speaker: str = "role"
) -> list[Message]:
    """`messages`, once it is system?, user, assistant, user, ... and ends with the role `last`.

    Behind an answer that calls tools stand their results and the assistant again; where a user may be last, so may a
    result. With `repeats` the assistant may speak twice in a row, as it does in some transcripts of real chats.
    `speaker` is the field that says who speaks.
    """
    start = 1 if messages[0]["role"] == "system" else 0
    previous: Message | None = None
    for at, message in enumerate(messages[start:], start):
        allowed = _roles_behind(previous, repeats=repeats)
        if message["role"] not in allowed:
            raise ValueError(
                f"field '{name}[{at}].{speaker}' must be {' or '.join(map(repr, allowed))} here, got "
                f"{message['role']!r}; "
                "after an optional system message, user and assistant take turns, and results of tools follow a call"
            )
        previous = message
    if messages[-1]["role"] not in ((last, "tool") if last == "user" else (last,)):
        raise ValueError(f"field {name!r} must end with role {last!r}, got {messages[-1]['role']!r}")
    return messages


def _roles_behind(previous: Message | None, *, repeats: bool) -> tuple[str, ...]:
    if previous is None:
        return ("user",)
    if previous["role"] == "assistant":
        return ("tool",) if "tool_calls" in previous else ("user", *["assistant"] * repeats)
    return ("assistant", "tool") if previous["role"] == "tool" else ("assistant",)


def to_last_learnt(messages: list[Message]) -> list[Message]:
    """The messages up to the last answer that is learnt, of which those that are not have `train` false."""
    answers = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    learnt = [at for at in answers if messages[at].get("train", True)]
    if not learnt:
        raise ValueError(
            "the fields with weights or flags leave no answer of the row to be learnt; remove the row"
        )
    return [unflagged(message) if message.get("train") else message for message in messages[: learnt[-1] + 1]]


def last_alone(row: Conversation) -> Conversation:
    """The conversation with its last answer as the only one that is learnt."""
    *earlier, last = row.messages
    said = [{**message, "train": False} if message["role"] == "assistant" else message for message in earlier]
    return replace(row, messages=[*cast(list[Message], said), last])


def unflagged(message: Message) -> Message:
    return cast(Message, {key: said for key, said in message.items() if key != "train"})


# --- prompts and answers ------------------------------------------------------------------------------


def as_prompt(value: object, name: str) -> list[Message]:
    """A prompt given as text, as a transcript, as a message or a list of them; it ends with the user or a tool."""
    if isinstance(value, str):
        messages = written_turns(as_text(value, name), name)
        if messages is None:
            return [{"role": "user", "content": value}]
    else:
        messages = as_messages([value] if isinstance(value, Mapping) else value, name)
    return in_order(messages, name, last="user", repeats=True)


def as_answer(value: object, name: str) -> list[Message]:
    """An answer given as text, as a message or a list of them, which may repeat the prompt before it, as a transcript
    does."""
    if isinstance(value, str):
        messages = written_turns(as_text(value, name), name)
        if messages is None:
            return [_said(value, name)]
    else:
        messages = as_messages([value] if isinstance(value, Mapping) else value, name)
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
