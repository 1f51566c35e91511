"""How a row of each format becomes messages, or a pair. Every function raises `ValueError` naming the field."""

from collections.abc import Callable, Mapping
from typing import Any

from paft.chat.conversation import Message, PreferencePair
from paft.config import RowFormat
from paft.data.fields import is_blank
from paft.data.messages import (
    as_answer,
    as_messages,
    as_prompt,
    as_text_answer,
    bare,
    in_order,
)
from paft.data.sharegpt import as_turns
from paft.data.texts import as_text
from paft.data.tools import as_tools
from paft.data.written import hh_turns

Row = Mapping[str, Any]


def tools_of(row: Row) -> list[dict[str, Any]]:
    """What the column `tools` lists; nothing where there is none."""
    return as_tools(row.get("tools"), "tools")


def field(row: Row, name: str) -> Any:
    """What a field holds, which must not be null."""
    if row.get(name) is None:
        raise ValueError(f"field {name!r} is missing; the row has {listed(row)}")
    return row[name]


def listed(columns: Any) -> str:
    """Some columns by name, however many there are and however long their names."""
    names = [f"{name!r:.40}" for name in sorted(map(str, columns))]
    return f"[{', '.join(names[:12])}]" + (f" and {len(names) - 12} more" if len(names) > 12 else "")


# --- conversations ------------------------------------------------------------------------------------


def _from_messages(row: Row) -> list[Message]:
    return in_order(as_messages(field(row, "messages"), "messages"), "messages", last="assistant")


def _from_prompt_completion(row: Row) -> list[Message]:
    prompt, completion = as_prompt(field(row, "prompt"), "prompt"), field(row, "completion")
    if not isinstance(completion, str):
        messages = as_messages([completion] if isinstance(completion, Mapping) else completion, "completion")
        return in_order([*prompt, *messages], "prompt + completion", last="assistant")
    return [*prompt, *bare([as_text_answer(completion, "completion")], row["prompt"])]


def _from_gsm8k(row: Row) -> list[Message]:
    question, answer = as_text(field(row, "question"), "question"), field(row, "answer")
    return [*as_prompt(question, "question"), *bare([as_text_answer(answer, "answer")], question)]


def _from_sharegpt(row: Row) -> list[Message]:
    turns = as_turns(field(row, "conversations"), "conversations")
    return [*_system(row, turns), *in_order(turns, "conversations", last="assistant", speaker="from")]


def _from_alpaca(row: Row) -> list[Message]:
    return [*_alpaca_prompt(row), as_text_answer(field(row, "output"), "output")]


def _alpaca_prompt(row: Row) -> list[Message]:
    """The system message, the history's turns, and instruction and input as one turn, a line feed between them."""
    texts = [as_text(row[name], name) for name in ("instruction", "input") if not _is_empty(row.get(name))]
    asked = "\n".join(texts) if texts else as_text(row.get("instruction"), "instruction")
    said = [*_history(row), *as_prompt(asked, "instruction")]
    return [*_system(row, said), *said]


def _history(row: Row) -> list[Message]:
    """Earlier turns as [[instruction, output], ...]; their answers are learnt like the last."""
    history = row.get("history")
    if is_blank(history):
        return []
    pairs = history if isinstance(history, list) else [history]
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise ValueError(f"field 'history' must be a list of [instruction, output], got {history!r:.60}")
    return [
        message
        for at, (asked, said) in enumerate(pairs)
        for message in as_messages(
            [{"role": "user", "content": asked}, {"role": "assistant", "content": said}], f"history[{at}]"
        )
    ]


def _system(row: Row, messages: list[Message]) -> list[Message]:
    """The system message that a column of its own gives to messages without one."""
    if _is_empty(row.get("system")):
        return []
    text = as_text(row["system"], "system")
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": text}]
    if messages[0]["content"].strip() != text.strip():
        raise ValueError("field 'system' and the first message are two different system messages; keep one")
    return []


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


# --- pairs --------------------------------------------------------------------------------------------


def _from_preference(row: Row) -> PreferencePair:
    """Explicit (`prompt` given) or implicit (both answers are whole conversations from the same prompt)."""
    chosen, rejected = (as_answer(field(row, name), name) for name in ("chosen", "rejected"))
    given = row.get("prompt")
    if given is None:
        return _conversations(chosen, rejected)
    if len(chosen) == len(rejected) == 1:
        return PreferencePair(as_prompt(given, "prompt"), bare(chosen, given), bare(rejected, given))
    pair = _conversations(chosen, rejected)
    if not _repeats(pair.prompt, given):
        raise ValueError("fields 'chosen' and 'rejected' do not begin with the field 'prompt'")
    return pair


def _repeats(prompt: list[Message], given: object) -> bool:
    """A prompt given as text is one of the user's turns: the first in some data sets, the last in others."""
    said = (message["content"].strip() for message in prompt if message["role"] == "user")
    if isinstance(given, str) and as_text(given, "prompt").strip() in said:
        return True
    return prompt == as_prompt(given, "prompt")


def _conversations(
    chosen: list[Message], rejected: list[Message], names: tuple[str, str] = ("chosen", "rejected")
) -> PreferencePair:
    for name, messages in zip(names, (chosen, rejected), strict=True):
        if len(messages) < 2:
            raise ValueError(
                f"field {name!r} is an answer without its prompt; give both or add a field 'prompt'"
            )
    if chosen[:-1] != rejected[:-1]:
        raise ValueError(
            f"fields {names[0]!r} and {names[1]!r} have different prompts; only the last answer may differ"
        )
    return PreferencePair(chosen[:-1], chosen[-1:], rejected[-1:])


def _from_chosen_messages(row: Row) -> PreferencePair:
    names = ("chosen_messages", "rejected_messages")
    chosen, rejected = (
        in_order(as_messages(field(row, name), name), name, last="assistant", repeats=True) for name in names
    )
    return _conversations(chosen, rejected, names)


def _from_sharegpt_pair(row: Row) -> PreferencePair:
    turns = as_turns(field(row, "conversations"), "conversations")
    asked = in_order(turns, "conversations", last="user", repeats=True, speaker="from")
    return _answered(row, [*_system(row, turns), *asked])


def _from_alpaca_pair(row: Row) -> PreferencePair:
    return _answered(row, _alpaca_prompt(row))


def _answered(row: Row, prompt: list[Message]) -> PreferencePair:
    chosen, rejected = (_one_answer(field(row, name), name) for name in ("chosen", "rejected"))
    return PreferencePair(prompt, [chosen], [rejected])


def _one_answer(value: object, name: str) -> Message:
    """An answer given as text or as one turn."""
    if isinstance(value, str):
        return as_text_answer(value, name)
    turns = as_turns(value, name)
    if len(turns) > 1 or turns[0]["role"] != "assistant":
        raise ValueError(f"field {name!r} must be one answer, by gpt or the assistant")
    return turns[0]


def _from_hh(row: Row) -> PreferencePair:
    chosen, rejected = (_transcript(field(row, name), name) for name in ("chosen", "rejected"))
    return _conversations(chosen, rejected)


def _transcript(value: object, name: str) -> list[Message]:
    """Turns of an Anthropic/hh-rlhf transcript: blank line, `Human:` or `Assistant:`, text."""
    turns = hh_turns(as_text(value, name))
    if turns is None:
        raise ValueError(f"field {name!r} must begin with a blank line and 'Human:', got {value!r:.60}")
    return in_order(as_messages(turns, name), name, last="assistant", repeats=True)


CONVERSATION_PARSERS: dict[RowFormat, Callable[[Row], list[Message]]] = {
    RowFormat.messages: _from_messages,
    RowFormat.prompt_completion: _from_prompt_completion,
    RowFormat.gsm8k: _from_gsm8k,
    RowFormat.sharegpt: _from_sharegpt,
    RowFormat.alpaca: _from_alpaca,
}
PAIR_PARSERS: dict[RowFormat, Callable[[Row], PreferencePair]] = {
    RowFormat.preference: _from_preference,
    RowFormat.hh: _from_hh,
    RowFormat.chosen_messages: _from_chosen_messages,
    RowFormat.sharegpt: _from_sharegpt_pair,
    RowFormat.alpaca: _from_alpaca_pair,
}
