"""What the fields of a row mean beside its texts: honoured, listed as ignored, or a reason to refuse the row."""

import re
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

FLAGS = ("weight", "loss_weight", "train", "trainable", "loss", "learn")
"""Of an answer or a whole row: whether it is learnt. The names of OpenAI, LLaMA-Factory, axolotl and ms-swift."""
JUDGEMENTS = (
    *("label", "kto_tag", "desirable", "is_desirable", "good", "is_good", "correct", "is_correct"),
    *("accepted", "is_accepted", "passed"),
)
"""Of a row: whether its answer is a good one, as in KTO's data. Another word there is a label of some other kind."""
CONDEMNED = ("deleted", "is_deleted", "rejected", "is_rejected")
"""Of a row: true where its answer is not a good one."""
RATED = (("score_{}", "{}_score"), ("rating_{}", "{}_rating"), ("reward_{}", "{}_reward"))
"""Names of what somebody gave the chosen and the rejected answer."""
METADATA = {
    *("id", "message_id", "parent_id", "index", "turn", "turn_id", "turn_identifier"),
    *("timestamp", "created_at", "date", "lang", "language", "model", "source", "metadata"),
    *("num_tokens", "token_count", "country", "header", "hashed_ip", "state", "toxic", "redacted"),
}
"""Of a message: fields that say nothing to a model. Any other field that PAFT does not use refuses the row."""
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Of an answer: what is thought before it."""
READ_OF_MESSAGE = {"role", "content", *FLAGS, *METADATA}
READ_OF_ROLE = {
    "assistant": {"tool_calls", "function_call", *REASONING},
    "tool": {"name", "tool_call_id"},
}
CONTEXT = "a part of the prompt"
KINDS = {
    "tool calls": "tool function tool_call function_call tool_choice",
    "reasoning": "reasoning reasoning_content reasoning_detail thinking thinking_content thought chain_of_thought cot "
    "rationale scratchpad",
    "images, sound or video": "image image_url audio video",
    "a weight, mask or label": f"{' '.join(FLAGS + JUDGEMENTS)} sample_weight turn_weight message_weight training "
    "train_on mask masked loss_mask assistant_mask train_mask exclude excluded skip undesirable is_bad thumbs_up "
    "thumbs_down",
    "settings of a chat template": "chat_template chat_template_kwarg enable_thinking",
    CONTEXT: "system system_prompt system_message sys_prompt persona developer instruction input context history "
    "passage paragraph article background document choice option",
}
PARTS = {
    "tool": "tool calls", "tools": "tool calls", "reasoning": "reasoning", "think": "reasoning",
    "thinking": "reasoning", "image": "images, sound or video", "images": "images, sound or video",
}  # fmt: skip
"""Word in a field's name -> what such fields hold; `ABOUT` as its last or first word makes it a fact about them."""
ABOUT = {"id", "ids", "type", "count", "name", "length", "len", "tokens", "num", "n", "has", "is"}
UNREAD = {name.replace("_", "").rstrip("s"): kind for kind, names in KINDS.items() for name in names.split()}
"""Field of a row, as `_plain` writes it -> what it holds that PAFT does not use."""

TRUE, FALSE = ("1", "1.0", "true"), ("0", "0.0", "false")
GOOD, BAD = (
    (*TRUE, "yes", "good"),
    (*FALSE, "no", "bad", "rejected", "undesirable", "incorrect", "wrong", "failed"),
)
BLANK = ("", "null", "none", "nan", "[]", "{}")
"""Texts of a cell that stand for nothing."""
DEEPEST = 6
"""Levels of nesting in which nothing but nulls is looked for."""


def is_blank(value: Any, deepest: int = DEEPEST) -> bool:
    """Whether a field says nothing: null, empty, or nulls alone, with which Parquet fills the fields of a struct."""
    match value:
        case None:
            return True
        case str():
            return len(value) < 8 and value.strip().lower() in BLANK
        case float():
            return value != value
        case Mapping() | list() | tuple() if deepest:
            inner: Iterable[Any] = value.values() if isinstance(value, Mapping) else value
            return all([is_blank(item, deepest - 1) for item in inner])
    return False


def learnt(fields: Mapping[str, Any], at: str = "") -> bool | None:
    """What the flags of a message or row say of it, None where there are none; `at` is where it is, for errors.

    Raises `ValueError` for a flag that is not plainly yes or no, and for flags that contradict each other.
    """
    said = {name: truth(fields[name], f"{at}{name}") for name in FLAGS if not is_blank(fields.get(name))}
    if len(set(said.values())) > 1:
        raise ValueError(
            f"fields {', '.join(repr(at + name) for name in said)} contradict each other; keep one"
        )
    return next(iter(said.values()), None)


def truth(value: Any, name: str) -> bool:
    """A yes or no. Raises `ValueError` for anything that is not plainly one."""
    text = str(value).strip().lower() if isinstance(value, str | bool | int | float) else ""
    if text not in TRUE + FALSE:
        raise ValueError(
            f"field {name!r} must be 0 or 1, false or true, got {value!r:.60}; there is nothing between"
        )
    return text in TRUE


def refuse_unread(row: Mapping[str, Any], used: Set[str], prompt: Iterable[str]) -> None:
    """Raise `ValueError` naming a column that changes what the row means and is not in `used`.

    A part of the prompt may stand in a column of its own once more, if one of the texts of the `prompt` holds it.
    """
    extra = {name: value for name, value in row.items() if name not in used and not is_blank(value)}
    if not extra:
        return
    if learnt(extra) is False:
        names = ", ".join(repr(name) for name in FLAGS if name in extra)
        raise ValueError(f"field {names} says that the row is not to be learnt; remove the row")
    refuse_opposite(row)
    for name, value in extra.items():
        if (name in JUDGEMENTS and _word(value) in BAD) or (name in CONDEMNED and _word(value) in GOOD):
            raise ValueError(
                f"field {name!r} is {value!r:.60}, and only answers that it calls good, by true or 1, can be "
                "learnt; remove the row, or the field if it does not judge the answer"
            )
        kind = _kind(name) if name not in FLAGS + JUDGEMENTS + CONDEMNED else None
        if kind == CONTEXT and not _stands_in(value, prompt):
            raise ValueError(
                f"field {name!r} holds {kind} and is not used; write it into the prompt or the messages"
            )
        if kind and kind != CONTEXT:
            raise ValueError(
                f"field {name!r} holds {kind}, which is not used yet; remove it if the row is right without"
            )


def refuse_opposite(row: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a pair whose rejected answer was rated above the chosen one."""
    pairs = [
        tuple(form.format(answer) for answer in ("chosen", "rejected")) for forms in RATED for form in forms
    ]
    for chosen, rejected in pairs:
        one, other = row.get(chosen), row.get(rejected)
        if isinstance(one, int | float) and isinstance(other, int | float) and one < other:
            raise ValueError(
                f"field {rejected!r} is {other!r}, above {chosen!r} with {one!r}: the pair says the "
                "opposite of its ratings; exchange the answers or remove the row"
            )


def _word(value: Any) -> str:
    return str(value).strip().lower() if isinstance(value, str | bool | int | float) else ""


def _kind(name: str) -> str | None:
    """What a field of this name holds that PAFT does not use; None of one that says nothing to a model."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().replace("-", "_").split("_")
    by_part = next((PARTS[word] for word in words if word in PARTS), None)
    about = {words[0], words[-1]} & ABOUT
    return UNREAD.get(_plain(name)) or (None if about else by_part)


def _plain(name: str) -> str:
    """A field's name without its case, underscores and plural: `toolCalls` is `toolcall`."""
    return re.sub("[_ -]", "", name).lower().rstrip("s")


def _stands_in(value: Any, prompt: Iterable[str]) -> bool:
    if isinstance(value, list):
        return all(_stands_in(item, prompt) for item in value)
    whole = re.compile(rf"(?<!\w){re.escape(value.strip())}(?!\w)") if isinstance(value, str) else None
    return whole is not None and any(whole.search(text) for text in prompt)


def refuse_unread_of_message(message: Mapping[str, Any], at: str) -> None:
    """Raise `ValueError` naming a field of a message that is neither used of its role nor `METADATA`."""
    used = READ_OF_MESSAGE | READ_OF_ROLE.get(str(message.get("role")), set())
    for name, value in message.items():
        if name not in used and not is_blank(value):
            raise ValueError(
                f"field '{at}.{name!s:.40}' is not used yet, and the message may be wrong without it; remove the "
                "field if it is right"
            )


def ignored(row: Mapping[str, Any], used: Set[str]) -> Iterator[str]:
    """Fields of a good row that say something and are not used: columns, and of messages as `messages.id`."""
    for name, value in row.items():
        if name not in used:
            judged = name in JUDGEMENTS and _word(value) in GOOD + BAD
            if name not in FLAGS and not judged and not is_blank(value):
                yield f"{name or repr(name):.60}"
        elif isinstance(value, list):
            wide = [message for message in value if isinstance(message, Mapping) and len(message) > 2]
            inner = {
                key for message in wide for key in message if key in METADATA and not is_blank(message[key])
            }
            yield from (f"{name}.{key}" for key in sorted(inner))
            if wide and name != "tools" and learnt(value[-1]) is False:
                yield f"{name} after the last learnt answer"
