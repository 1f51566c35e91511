"""The two kinds of training row, and how each accepted row format becomes one of them.

Parsing is pure and strict: a row is either exactly one `Conversation` or `PreferencePair`, or a
ValueError that names the field. No field vanishes: see `paft.data.fields`. Where the row came from is added by
`paft.data.sources`.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from paft.chat.conversation import Conversation, Message, PreferencePair
from paft.config import RowFormat
from paft.data import fields
from paft.data.messages import (
    as_answer,
    as_messages,
    as_prompt,
    as_text,
    as_text_answer,
    bare,
    in_order,
    listed_messages,
    to_last_learnt,
    unflagged,
)
from paft.data.written import hh_turns

CONVERSATION_COLUMNS = {
    RowFormat.messages: {"messages"},
    RowFormat.prompt_completion: {"prompt", "completion"},
    RowFormat.gsm8k: {"question", "answer"},
}
PREFERENCE_COLUMNS = {RowFormat.preference: {"chosen", "rejected"}, RowFormat.hh: {"chosen", "rejected"}}
USED = {**CONVERSATION_COLUMNS, **PREFERENCE_COLUMNS, RowFormat.preference: {"prompt", "chosen", "rejected"}}


def parse_conversation(row: object, row_format: RowFormat) -> Conversation:
    """The conversation a raw row holds; what follows its last learnt answer is left out.

    Raises ValueError naming the field that is missing, empty, of the wrong type or in the wrong order, or that
    changes what the row means and is not used. `ignored_fields` names the others.
    """
    columns = listed_messages(_columns(row), USED[row_format])
    messages = CONVERSATION_PARSERS[row_format](columns)
    fields.refuse_unread(columns, USED[row_format], _asked(messages))
    return Conversation(to_last_learnt(messages))


def parse_preference_pair(row: object, row_format: RowFormat) -> PreferencePair:
    """The preference pair a raw row holds.

    Raises ValueError as `parse_conversation`, also if chosen and rejected are the same or answer different prompts.
    """
    columns = listed_messages(_columns(row), USED[row_format])
    pair = PAIR_PARSERS[row_format](columns)
    fields.refuse_unread(columns, USED[row_format], _asked(pair.prompt))
    pair = _answers_learnt(pair)
    if pair.chosen == pair.rejected:
        raise ValueError("fields 'chosen' and 'rejected' are identical, so the row states no preference")
    return pair


def ignored_fields(row: object, row_format: RowFormat) -> list[str]:
    """The fields of a row that parses which say something and are not used, as `id` or `messages.id`."""
    return list(fields.ignored(listed_messages(_columns(row), USED[row_format]), USED[row_format]))


def _asked(messages: list[Message]) -> list[str]:
    return [message["content"] for message in messages if message["role"] != "assistant"]


def _answers_learnt(pair: PreferencePair) -> PreferencePair:
    """The pair without flags, which may say no more than what a preference branch does."""
    for name, messages, does in (
        ("prompt", pair.prompt, False),
        ("chosen", pair.chosen, True),
        ("rejected", pair.rejected, True),
    ):
        if any(message.get("train", does) is not does for message in messages):
            raise ValueError(
                f"field {name!r} has a message with a weight or flag that says otherwise, but a preference branch "
                "learns the last answers, chosen and rejected, and no other; correct or remove it"
            )
    return PreferencePair(*(list(map(unflagged, part)) for part in (pair.prompt, pair.chosen, pair.rejected)))


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


# --- formats -----------------------------------------------------------------------------------------


def _from_messages(row: Mapping[str, Any]) -> list[Message]:
    return in_order(as_messages(_field(row, "messages"), "messages"), "messages", last="assistant")


def _from_prompt_completion(row: Mapping[str, Any]) -> list[Message]:
    prompt, completion = as_prompt(_field(row, "prompt"), "prompt"), _field(row, "completion")
    if not isinstance(completion, str):
        messages = as_messages(completion, "completion")
        return in_order([*prompt, *messages], "prompt + completion", last="assistant")
    return [*prompt, *bare([as_text_answer(completion, "completion")], row["prompt"])]


def _from_gsm8k(row: Mapping[str, Any]) -> list[Message]:
    question, answer = as_text(_field(row, "question"), "question"), _field(row, "answer")
    return [*as_prompt(question, "question"), *bare([as_text_answer(answer, "answer")], question)]


def _from_preference(row: Mapping[str, Any]) -> PreferencePair:
    """Explicit (`prompt` given) or implicit (both answers are whole conversations from the same prompt)."""
    chosen, rejected = (as_answer(_field(row, name), name) for name in ("chosen", "rejected"))
    given = row.get("prompt")
    if given is None:
        return _whole_conversations(chosen, rejected)
    if len(chosen) == len(rejected) == 1:
        return PreferencePair(as_prompt(given, "prompt"), bare(chosen, given), bare(rejected, given))
    pair = _whole_conversations(chosen, rejected)
    if not _repeats(pair.prompt, given):
        raise ValueError("fields 'chosen' and 'rejected' do not begin with the field 'prompt'")
    return pair


def _repeats(found: list[Message], given: object) -> bool:
    """A prompt given as text is one of the user's turns: the first in some data sets, the last in others."""
    said = (message["content"].strip() for message in found if message["role"] == "user")
    if isinstance(given, str) and as_text(given, "prompt").strip() in said:
        return True
    return found == as_prompt(given, "prompt")


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
    turns = hh_turns(as_text(value, name))
    if turns is None:
        raise ValueError(f"field {name!r} must begin with a blank line and 'Human:', got {value!r:.60}")
    return in_order(as_messages(turns, name), name, last="assistant", repeats=True)


CONVERSATION_PARSERS: dict[RowFormat, Callable[[Mapping[str, Any]], list[Message]]] = {
    RowFormat.messages: _from_messages,
    RowFormat.prompt_completion: _from_prompt_completion,
    RowFormat.gsm8k: _from_gsm8k,
}
PAIR_PARSERS: dict[RowFormat, Callable[[Mapping[str, Any]], PreferencePair]] = {
    RowFormat.preference: _from_preference,
    RowFormat.hh: _from_hh,
}
