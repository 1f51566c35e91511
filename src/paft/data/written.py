"""Conversations that a field holds as one text: a list of messages in JSON or Python, a transcript, a rendering."""

import ast
import json
import re
import warnings
from typing import Any

from paft.files.jsonfile import parse

SPEAKERS = {
    *("system", "developer", "user", "human", "assistant", "gpt", "bot", "model"),
    *("tool", "function", "function_call", "observation", "ipython"),
}
SPEAKER = re.compile(r"""['"](?:role|from)\\*['"]\s*:""")
SAID = re.compile(r"""['"](?:content|value)\\*['"]\s*:""")
PART_KINDS = {"text", "image", "image_url", "audio", "video"}
PART = re.compile(rf"""['"]type['"]\s*:\s*['"](?:{"|".join(sorted(PART_KINDS))})['"]""")
RENDERED = re.compile(
    r"(?:<s>|<bos>|<\|begin_of_text\|>)?\s*(?:<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|\[INST\]"
    r"|<\|(?:system|user|human|assistant)\|>|<\|start\|>|<｜User｜>)"
)
HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
HH_ROLES = {"Human": "user", "Assistant": "assistant"}
ASKS = re.compile(r"^[^\w\n]{0,8}(?:human|user)[^\w\n]{0,4}:", re.IGNORECASE | re.MULTILINE)
OPENS = re.compile(r"\b(?:assistant|ai|bot|chatbot|gpt)[^\w\n]{0,4}:\W{0,4}\Z", re.IGNORECASE)
REPLIES = re.compile(
    r"^[^\w\n]{0,8}(?:assistant|ai|bot|chatbot|gpt)[^\w\n]{0,4}:", re.IGNORECASE | re.MULTILINE
)


def message_list(text: str) -> list[Any] | None:
    """The messages that a text spells out as a list, or None for any other text.

    Raises `ValueError` for a text that begins as such a list and is neither JSON nor Python, as what NumPy prints.
    """
    begun = text.lstrip(" \t\r\n\"'")
    if not begun.startswith(("[", "{", "(", "array")):
        return None
    spoken = SPEAKER.search(text) and SAID.search(text)
    if not (spoken or PART.search(text)):
        return None
    for read in (_json, _python):
        try:
            value = read(text.strip())
            return _as_messages(read(value) if isinstance(value, str) else value)
        except _TypedParts:
            raise
        except ValueError:
            continue
    if not spoken:
        return None
    if not re.match(r"(?:array\()?[\[({]\s{0,9}\{?\s{0,9}\\*['\"]", begun) or _json_begins(begun):
        return None
    raise ValueError(
        f"looks like a list of messages written as text, and is neither JSON nor Python: {text!r:.60}; "
        "write the list itself, or as JSON"
    )


class _TypedParts(ValueError):
    pass


def _as_messages(value: Any) -> list[Any] | None:
    items = [value] if isinstance(value, dict) else list(value) if isinstance(value, list | tuple) else []
    objects = [item for item in items if isinstance(item, dict)]
    if objects and all(_is_part(item) for item in items):
        raise _TypedParts("is a list of typed parts written as text; write the text alone")
    return items if any(map(_is_message, objects)) else None


def _is_part(item: Any) -> bool:
    kind = item.get("type") if isinstance(item, dict) else None
    return isinstance(kind, str) and kind in PART_KINDS and bool({kind, "value"} & item.keys())


def _is_message(item: dict[Any, Any]) -> bool:
    """Whether an object names a speaker, or says nothing but a role and a content; a column may hold a list of each."""
    speaker = item.get("role", item.get("from"))
    first = speaker[0] if isinstance(speaker, list) and speaker else speaker
    named = isinstance(first, str) and first.lower() in SPEAKERS
    return named or item.keys() == {"role", "content"}


def _json(text: str) -> Any:
    return parse(text.encode())


def _python(text: str) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):  # of an escape that Python does not know
            return ast.literal_eval(text)
    except (SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(str(error)) from None


def _json_begins(text: str) -> bool:
    """Whether a JSON value is followed by something else: a question about it, perhaps."""
    try:
        return bool(text[json.JSONDecoder().raw_decode(text)[1] :].strip())
    except (ValueError, RecursionError):
        return False


def transcript(text: str) -> list[dict[str, str]] | None:
    """The turns of a text in which a human and an assistant speak, or None for any other text.

    The last turn is the assistant's and empty where the text ends as a prompt does. Raises `ValueError` for turns
    that are already written in a chat template, and for a transcript whose turns are not those of
    Anthropic/hh-rlhf: a blank line, then `Human:` or `Assistant:`.
    """
    if RENDERED.match(text.lstrip()):
        raise ValueError(
            f"begins with the marks of a chat template: {text.strip()!r:.60}; write the turns as a list of messages, "
            "for the template is added to them"
        )
    if not _is_spoken(text):
        return None
    turns = hh_turns(text)
    if turns is None or (len(turns) == 1 and not text.startswith("\n\n")) or any(map(_holds_turns, turns)):
        raise ValueError(
            f"is a transcript of several turns: {text.strip()!r:.60}; write it as a list of messages, or each turn "
            "after a blank line and 'Human:' or 'Assistant:'"
        )
    return turns


def _is_spoken(text: str) -> bool:
    """Whether a text begins with a human's turn, or ends where an assistant's begins, after one of a human."""
    begins = ASKS.match(text.lstrip())
    if begins and (begins[0] == "Human:" or REPLIES.search(text)):
        return True
    return OPENS.search(text.rstrip()[-40:]) is not None and ASKS.search(text) is not None


def _holds_turns(turn: dict[str, str]) -> bool:
    return bool(ASKS.search(turn["content"]) or REPLIES.search(turn["content"]))


def hh_turns(text: str) -> list[dict[str, str]] | None:
    """Turns of an Anthropic/hh-rlhf transcript as messages, without the white space around; None if it is none."""
    before, *parts = HH_TURN.split(text)
    if before.strip() or not parts:
        return None
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": HH_ROLES[who], "content": said.strip()} for who, said in turns]


def goes_on(answer: str) -> bool:
    """Whether an answer holds further turns of an hh-rlhf transcript."""
    return "\n\nHuman:" in answer and "\n\nAssistant:" in answer
