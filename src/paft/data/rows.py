"""The kinds of training row, and how each accepted row format becomes one of them.

Parsing is pure and strict: a row is either exactly one `Conversation`, `PreferencePair` or `UnpairedRow`, or a
ValueError that names the field. No field vanishes: see `paft.data.fields`. Where the row came from is added by
`paft.data.sources`.
"""

from collections.abc import Mapping
from typing import Any

from paft.chat.conversation import Conversation, Message, PreferencePair, UnpairedRow
from paft.config import OBJECTIVES, RowFormat
from paft.config.formats import CONVERSATIONS, PAIRS, UNPAIRED, Shape
from paft.data import fields
from paft.data.messages import last_alone, listed_messages, to_last_learnt, unflagged
from paft.data.parsers import CONVERSATION_PARSERS, PAIR_PARSERS, field, listed, tools_of

Shapes = Mapping[RowFormat, Shape]


def parse_conversation(row: object, row_format: RowFormat) -> Conversation:
    """The conversation a raw row holds; what follows its last learnt answer is left out.

    Raises ValueError naming the field that is missing, empty, of the wrong type or in the wrong order, or that
    changes what the row means and is not used. `ignored_fields` names the others.
    """
    messages, columns = _conversation(row, row_format, CONVERSATIONS)
    return Conversation(to_last_learnt(messages), tools_of(columns))


def parse_last_answer(row: object, row_format: RowFormat) -> Conversation:
    """As `parse_conversation`, with the last of its answers as the only one that is learnt."""
    return last_alone(parse_conversation(row, row_format))


def parse_preference_pair(row: object, row_format: RowFormat) -> PreferencePair:
    """The preference pair a raw row holds.

    Raises ValueError as `parse_conversation`, also if chosen and rejected are the same or answer different prompts.
    """
    columns = _columns(row, PAIRS[row_format])
    pair = PAIR_PARSERS[row_format](columns)
    fields.refuse_unread(columns, PAIRS[row_format].used, _asked(pair.prompt))
    _refuse_other_flags(
        ("prompt", pair.prompt, False), ("chosen", pair.chosen, True), ("rejected", pair.rejected, True)
    )
    prompt, chosen, rejected = map(_unflagged, (pair.prompt, pair.chosen, pair.rejected))
    pair = PreferencePair(prompt, chosen, rejected, tools_of(columns))
    if pair.chosen == pair.rejected:
        names = " and ".join(
            repr(name) for name in PAIRS[row_format].needed if "chosen" in name or "rejected" in name
        )
        raise ValueError(f"fields {names} are identical, so the row states no preference")
    return pair


def parse_unpaired(row: object, row_format: RowFormat) -> UnpairedRow:
    """The answer and the judgement of it that a raw row holds: a conversation, and `label`, true where its last answer
    is a good one.

    Raises ValueError as `parse_conversation`, also for a label that is not plainly yes or no.
    """
    messages, columns = _conversation(row, row_format, UNPAIRED)
    prompt, completion = messages[:-1], messages[-1:]
    _refuse_other_flags(("prompt", prompt, False), ("completion", completion, True))
    label = fields.truth(field(columns, "label"), "label")
    return UnpairedRow(_unflagged(prompt), _unflagged(completion), label, tools_of(columns))


def _conversation(
    row: object, row_format: RowFormat, shapes: Shapes
) -> tuple[list[Message], Mapping[str, Any]]:
    columns = _columns(row, shapes[row_format])
    messages = CONVERSATION_PARSERS[row_format](columns)
    fields.refuse_unread(columns, shapes[row_format].used, _asked(messages))
    return messages, columns


def ignored_fields(row: object, shape: Shape) -> list[str]:
    """The fields of a row that parses which say something and are not used, as `id` or `messages.id`."""
    return list(fields.ignored(_columns(row, shape), shape.used))


def _asked(messages: list[Message]) -> list[str]:
    return [message["content"] for message in messages if message["role"] != "assistant"]


def _refuse_other_flags(*parts: tuple[str, list[Message], bool]) -> None:
    """Raise `ValueError` for a flag that says more than what a preference branch does with these messages."""
    for name, messages, does in parts:
        if any(message.get("train", does) is not does for message in messages):
            raise ValueError(
                f"field {name!r} has a message with a weight or flag that says otherwise, but a preference branch "
                "learns the last answers and no other; correct or remove it"
            )


def _unflagged(messages: list[Message]) -> list[Message]:
    return [unflagged(message) for message in messages]


# --- which format -------------------------------------------------------------------------------------


def conversation_format(row: object, wanted: RowFormat) -> RowFormat:
    """`wanted`, or for `auto` the format that the columns of `row` show."""
    return _format(row, wanted, CONVERSATIONS, "conversations")


def unpaired_format(row: object, wanted: RowFormat) -> RowFormat:
    """`wanted`, or for `auto` the format that the columns of `row` show."""
    return _format(row, wanted, UNPAIRED, "pairs or judged answers")


def preference_format(row: object, wanted: RowFormat) -> RowFormat:
    """`wanted`, or for `auto` the format that the columns of `row` show."""
    columns, of_pairs = _named(row), PAIRS[RowFormat.preference]
    if wanted is RowFormat.auto and of_pairs.holds(columns) and _is_preference(columns):
        return RowFormat.hh if _is_transcript(columns) else RowFormat.preference
    if wanted is RowFormat.auto and _is_any(columns, UNPAIRED) and not _is_any(columns, PAIRS):
        raise ValueError(_unpaired_where_pairs_belong())
    return _format(row, wanted, PAIRS, "preference pairs")


def shows_pair(row: object, wanted: RowFormat) -> bool:
    """Whether the columns of `row` are those of a pair in the format `wanted`, in any for `auto`."""
    shapes = [shape for name, shape in PAIRS.items() if wanted in (RowFormat.auto, name)]
    return isinstance(row, Mapping) and any(shape.holds(row) for shape in shapes)


def _is_any(columns: Mapping[str, Any], shapes: Shapes) -> bool:
    return any(shape.holds(columns) for shape in shapes.values())


def _format(row: object, wanted: RowFormat, shapes: Shapes, kind: str) -> RowFormat:
    columns = _named(row)
    if wanted is RowFormat.auto:
        for row_format, shape in shapes.items():
            if shape.holds(columns):
                return row_format
    if wanted not in shapes:
        raise ValueError(_unknown_format(wanted, columns, kind, shapes))
    return wanted


def _is_preference(row: Mapping[str, Any]) -> bool:
    """Whether the prompt is in `prompt` or in the answers, not in the columns of another format."""
    chosen = row["chosen"]
    repeats_prompt = isinstance(chosen, list) and len(chosen) > 1
    others = (PAIRS[RowFormat.sharegpt], PAIRS[RowFormat.alpaca])
    return "prompt" in row or repeats_prompt or not any(shape.holds(row) for shape in others)


def _is_transcript(row: Mapping[str, Any]) -> bool:
    chosen = row["chosen"]
    return "prompt" not in row and isinstance(chosen, str) and chosen.lstrip().startswith("Human:")


def _unpaired_where_pairs_belong() -> str:
    pairs, single = (
        [name for name, objective in OBJECTIVES.items() if objective.rows == rows]
        for rows in ("pairs", "unpaired")
    )
    set_other = f"set preference={single[0]}, which learns from such rows, " if single else ""
    return (
        "the file holds one answer a row with a judgement of it (label), and the preference objectives "
        f"{', '.join(pairs) or 'here'} learn from pairs (chosen, rejected); {set_other}bring pairs, or train the SFT "
        "branch on the good answers: data.sft.path=... data.sft.bad_rows=drop leaves out those whose label is false"
    )


def _unknown_format(wanted: RowFormat, row: Mapping[str, Any], kind: str, shapes: Shapes) -> str:
    accepted = "; ".join(f"{name.value}: {', '.join(shape.needed)}" for name, shape in shapes.items())
    nested = next((f"; {hint}" for name, value in row.items() if (hint := _nested_rows(name, value))), "")
    return (
        f"format={wanted.value} finds no {kind} in the columns {listed(row)}; accepted are the formats "
        f"(with their columns) {accepted}. Say which column is which, as columns={{prompt: question, completion: "
        f"answer}}, or rename them{nested}"
    )


def _nested_rows(name: object, value: object) -> str:
    """What to do about a column that holds rows, as `instances` of self-instruct's seed tasks."""
    first = value[0] if isinstance(value, list) and value else None
    if not isinstance(first, Mapping) or not {"output", "completion", "answer"} & first.keys():
        return ""
    inside = ", ".join(map(str, first))
    return f"{name!s:.40} holds rows of its own ({inside:.80}): write each as a row, with the other columns"


# --- columns ------------------------------------------------------------------------------------------


def renamed(row: object, columns: Mapping[str, str]) -> object:
    """The row with each column of the file under our name of it; one that has this name already is set aside.

    Raises ValueError for a column that the row has not.
    """
    if not columns:
        return row
    theirs = _named(row)
    for field_name, column in columns.items():
        if column not in theirs:
            raise ValueError(
                f"columns={{{field_name}: {column}}} names a column that the row has not; it has {listed(theirs)}"
            )
    ours = {column: field_name for field_name, column in columns.items()}
    return {_name(column, ours): value for column, value in theirs.items()}


def _name(column: Any, ours: Mapping[str, str]) -> Any:
    if column in ours:
        return ours[column]
    return f"{column} (not mapped)" if column in ours.values() else column


def in_words_of_file(error: ValueError, columns: Mapping[str, str]) -> ValueError:
    """The error, with the names that the file has for the fields in it."""
    named = [
        f"{ours!r} is the column {theirs!r}" for ours, theirs in columns.items() if f"'{ours}" in str(error)
    ]
    return ValueError(f"{error} ({', '.join(named)})") if named else error


def _columns(row: object, shape: Shape) -> Mapping[str, Any]:
    return listed_messages(_named(row), shape.used - {"tools"})


def _named(row: object) -> Mapping[str, Any]:
    if not isinstance(row, Mapping):
        raise ValueError(f"a row must be an object with named columns, got {type(row).__name__}")
    return row
