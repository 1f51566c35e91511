"""The chat template of a tokenizer: its text, its rendering of messages, what ends a turn and a generation."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2

from paft.chat.conversation import Message, Tools
from paft.config import Template
from paft.private import rendered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATES = Path(__file__).parent / "templates"
PROBE = "a probe of the template"
PROBE_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "probe_of_tools",
        "description": "A probe.",
        "parameters": {"type": "object", "properties": {}},
    },
}


class EndOfTurn(NamedTuple):
    marker: str
    """The token that ends an answer."""
    behind: str
    """What the template writes after it where the conversation ends: white space, an EOS."""


def template_text(template: Template, tokenizer: "PreTrainedTokenizerBase") -> str:
    """The Jinja text of a template: one that PAFT ships, or for `tokenizer` the tokenizer's own.

    No template shipped here inserts a system message. `zephyr` renders as the alignment-handbook's and
    `llama3` as Meta's. Of several named templates the tokenizer's own is `default`, as in transformers. Raises
    ValueError naming the model if it has none.
    """
    if template is not Template.tokenizer:
        return (TEMPLATES / f"{template.value}.jinja").read_text(encoding="utf-8")
    text = tokenizer.chat_template
    shipped = ", ".join(name.value for name in Template if name is not Template.tokenizer)
    if isinstance(text, dict):
        if "default" not in text:
            raise ValueError(
                f"the tokenizer of {model_name(tokenizer)} has the chat templates {', '.join(sorted(text))} and none "
                f"is called default; name one of them so in its tokenizer_config.json or set data.template to {shipped}"
            )
        text = text["default"]
    if not isinstance(text, str):
        raise ValueError(
            f"the tokenizer of {model_name(tokenizer)} has no chat template of its own "
            f"(base models have none); set data.template to one of {shipped}"
        )
    return text


def render(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    *,
    generation: bool,
    tools: Tools | None = None,
) -> str:
    """The text of messages, with `generation` up to where an answer begins. Raises ValueError if it refuses them."""
    plain: Any = [_as_read(message) for message in messages]

    try:
        return rendered(tokenizer, plain, generation=generation, tools=tools)
    except (jinja2.TemplateError, TypeError, RecursionError) as error:
        raise ValueError(
            f"the chat template refuses the messages: {error}; try another data.template"
        ) from None


def _as_read(message: Message) -> dict[str, Any]:
    """The message as chat templates name its fields; what is thought has three names, of which each knows one."""
    fields = {name: said for name, said in message.items() if name != "train"}
    thought = fields.get("reasoning_content")
    return fields if thought is None else {**fields, "reasoning": thought, "thinking": thought}


def knows_tools(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the tokenizer's `chat_template` writes tools: the name of one is in its rendering."""
    try:
        text = render(tokenizer, [{"role": "user", "content": PROBE}], generation=True, tools=[PROBE_TOOL])
    except ValueError:
        return False
    return str(PROBE_TOOL["function"]["name"]) in text


def end_of_turn(tokenizer: "PreTrainedTokenizerBase") -> EndOfTurn:
    """How the tokenizer's `chat_template` ends an answer.

    Raises ValueError if it does not, or does with what is ordinary text to this tokenizer: several tokens, which
    neither training nor generation would treat as the end of a turn.
    """
    messages: list[Message] = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": PROBE}]
    after = render(tokenizer, messages, generation=False).rpartition(PROBE)[2].lstrip()
    ending = after.rstrip()
    tokens = tokenizer.convert_ids_to_tokens(
        tokenizer(ending, add_special_tokens=False, verbose=False).input_ids
    )
    marker = tokens[0] if tokens else ""
    if not marker or not after.startswith(marker) or marker not in special_tokens(tokenizer):
        size = f"{len(tokens)} tokens" if len(tokens) > 1 else "a word as others"
        wrong = f"with {ending!r}, which is {size}" if ending else "with nothing"
        raise ValueError(
            f"the chat template ends a turn {wrong} to the tokenizer of {model_name(tokenizer)}; it must be one "
            "special or added token to be learnt. Set data.template=zephyr, which ends a turn with the "
            f"tokenizer's EOS {tokenizer.eos_token!r}, or choose a model whose tokenizer has the token"
        )
    return EndOfTurn(marker, after.removeprefix(marker))


def end_marker(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The token with which the tokenizer's `chat_template` ends an answer; raises as `end_of_turn`."""
    return end_of_turn(tokenizer).marker


def end_tokens(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, ...]:
    """The `end_marker`, and the tokenizer's EOS if that is another token: with what an answer in a file may end."""
    marker, eos = end_marker(tokenizer), tokenizer.eos_token
    return (marker, eos) if eos and eos != marker else (marker,)


def stop_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Ids that end a generated answer: the tokenizer's EOS and, where it has a template that ends turns, that end."""
    ends = [tokenizer.eos_token_id]
    if tokenizer.chat_template is not None:
        with suppress(ValueError):
            ends.append(tokenizer.convert_tokens_to_ids(end_marker(tokenizer)))
    return sorted({end for end in ends if end is not None})


def special_tokens(tokenizer: "PreTrainedTokenizerBase") -> set[str]:
    """Special and added tokens: what the tokenizer finds in a text before it looks for words."""
    return {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}


def adds_bos(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the tokenizer puts its BOS before every text by itself."""
    added = tokenizer("").input_ids[:1]
    return bool(added) and added == [tokenizer.bos_token_id]


def with_bos(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The tokenizer's `chat_template`, which writes the BOS itself if training has one there.

    A chat is tokenised elsewhere without what the tokenizer adds to other texts; see
    https://huggingface.co/docs/transformers/chat_templating.
    """
    text = template_text(Template.tokenizer, tokenizer)
    begin = render(tokenizer, [{"role": "user", "content": PROBE}], generation=True)
    if not adds_bos(tokenizer) or begin.startswith(str(tokenizer.bos_token)):
        return text
    return "{{ bos_token }}" + text


def model_name(tokenizer: "PreTrainedTokenizerBase") -> str:
    """What errors call the model that a tokenizer came with."""
    return tokenizer.name_or_path or "this model"
