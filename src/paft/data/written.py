"""Conversations that a field holds as one text: a list of messages in JSON or Python, a transcript, a rendering."""

import ast
import json
import re
import warnings
from typing import Any

from paft.store.jsonfile import parse

SPEAKERS = {
    *("system", "developer", "user", "human", "assistant", "gpt", "bot", "model"),
    *("tool", "function", "function_call", "observation", "ipython"),
}
SPEAKER = re.compile(r"""['"](?:role|from)\\*['"]\s*:""")
SAID = re.compile(r"""['"](?:content|value)\\*['"]\s*:""")
PARTS = re.compile(r"""\[\s*\{\s*['"]type['"]\s*:\s*['"](?:text|image|image_url|audio|video)['"]""")
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
    if PARTS.match(begun):
        raise ValueError(f"is a list of typed parts written as text: {text!r:.60}; write the text alone")
    if begun[:1] not in ("[", "{", "(", "a") or not (SPEAKER.search(text) and SAID.search(text)):
        return None
    for read in (_json, _python):
        try:
            value = read(text.strip())
            return _as_messages(read(value) if isinstance(value, str) else value)
        except ValueError:
            continue
    if not re.match(r"(?:array\()?[\[({]\s{0,9}\{?\s{0,9}\\*['\"]", begun) or _json_begins(begun):
        return None
    raise ValueError(
        f"looks like a list of messages written as text, and is neither JSON nor Python: {text!r:.60}; "
        "write the list itself, or as JSON"
    )


def _as_messages(value: Any) -> list[Any] | None:
    items = [value] if isinstance(value, dict) else list(value) if isinstance(value, list | tuple) else []
    speakers = [item.get("role", item.get("from")) if isinstance(item, dict) else None for item in items]
    return items if any(speaker in SPEAKERS for speaker in speakers) else None


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
    asked = ASKS.search(text)
    if asked is None:
        return False
    begins = not text[: asked.start()].strip()
    if begins and (asked[0] == "Human:" or REPLIES.search(text)):
        return True
    return OPENS.search(text.rstrip(), asked.end()) is not None


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
