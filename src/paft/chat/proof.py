"""Before a row is tokenised: what the rows of a template and tokenizer will be is proved on a few conversations.

The truth is transformers' own `apply_chat_template(..., tokenize=True)` of a whole conversation, in one call.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paft.chat.batch import BatchEncoder
from paft.chat.conversation import Conversation, Message, ToolCall, Tools
from paft.chat.encode import ChatEncoder
from paft.chat.template import render
from paft.chat.tokens import IGNORE
from paft.config import SpecialTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("paft")


def _chat(*texts: str, system: str | None = None) -> list[Message]:
    roles = ("user", "assistant") * (len(texts) // 2)
    first: list[Message] = [{"role": "system", "content": system}] if system else []
    return first + [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]


PLAIN = [_chat("Hello", "Answer"), _chat("Is it so?", "yes it is.")]
"""Every template renders these, and every answer begins as one of them does."""
UNUSUAL = [
    _chat("2+2?", "4", "And 3+3?", "Six, I think."),
    _chat("Hello", "Answer", system="Be brief."),
    _chat(" padded ", "  indented"),
    _chat("one\ntwo\n", "\n\nthree\n"),
    _chat("¿Qué? 東京", "é 🙂", "```\n\tcode", "{}"),
]
"""A template may refuse some of these, as it then refuses such rows."""


TOOLS: Tools = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a place.",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
        },
    }
]
CALL: ToolCall = {"type": "function", "function": {"name": "weather", "arguments": {"place": "東京"}}}
CALLING: list[Message] = [
    {"role": "user", "content": "Is it cold?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "name": "weather", "content": "12 degrees"},
    {"role": "assistant", "content": "It is 12 degrees."},
]
"""A template that writes tools may still refuse some of this, as calls without an id."""


def prove_template(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise `ValueError` unless rows in the tokenizer's `chat_template` get the tokens of its own rendering, and
    their prompts those with which generation will begin."""
    encoder = ChatEncoder(tokenizer)
    _warn(encoder)
    _refuse_added_end(encoder)
    for messages in PLAIN:
        _prove_row(encoder, messages)
        _prove_prompt(encoder, messages)
    unusual: list[tuple[list[Message], Tools]] = [*((messages, []) for messages in UNUSUAL), (CALLING, TOOLS)]
    for messages, tools in unusual:
        try:
            encoder.conversation(messages, tools)
        except ValueError:
            continue
        _prove_row(encoder, messages, tools)


def proved_encoder(tokenizer: "PreTrainedTokenizerBase", in_text: SpecialTokens) -> BatchEncoder:
    """An encoder of many rows for a template that `prove_template` accepts.

    If pieces of a text get other tokens than the text has, as a tokenizer with code of its own may do, nothing is cut.
    """
    prove_template(tokenizer)
    encoder = BatchEncoder(tokenizer, in_text)
    rows = [*(Conversation(messages) for messages in (*PLAIN, *UNUSUAL)), Conversation(CALLING, TOOLS)]
    together = zip(rows, encoder.conversations(rows), strict=True)
    if any(
        not isinstance(ids, ValueError) and ids != encoder.conversation(row.messages, row.tools)
        for row, ids in together
    ):
        encoder.cut_at([], by_word=False)
    return encoder


def reads_alike(
    tokenizer: "PreTrainedTokenizerBase", folder: Path, *, trust_remote_code: bool = False
) -> bool:
    """Whether plain transformers reads chats with the tokenizer in `folder` as rows of `tokenizer` are written."""
    from transformers import AutoTokenizer

    encoder = ChatEncoder(tokenizer)
    try:
        other = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (ValueError, OSError, TypeError, KeyError):
        return False
    for messages in (*PLAIN, *UNUSUAL):
        try:
            row = encoder.conversation(messages).input_ids
        except ValueError:
            continue
        if _plain_rendering(other, messages, generation=False)[: len(row)] != row:
            return False
    return True


def _warn(encoder: ChatEncoder) -> None:
    if "strftime_now" in str(encoder.tokenizer.chat_template):
        log.warning("the chat template of %s writes today's date: rows of another day differ", encoder.name)
    *prompt, answer = PLAIN[0]
    before = render(encoder.tokenizer, prompt, generation=True)
    whole = render(encoder.tokenizer, [*prompt, answer], generation=False)
    header = whole.removeprefix(before).partition(answer["content"])[0].strip()
    if header:
        log.warning(
            "the chat template of %s writes %r before an answer but not at the end of a prompt: it is learnt as part "
            "of every answer, and generated answers begin with it", encoder.name, header
        )  # fmt: skip


def _refuse_added_end(encoder: ChatEncoder) -> None:
    """Training adds the tokenizer's BOS alone; evaluation lets the tokenizer add what it adds."""
    added = list(encoder.tokenizer("").input_ids)
    if encoder.bos and added != encoder.bos:
        raise ValueError(
            f"the tokenizer of {encoder.name} writes {encoder.tokenizer.decode(added[1:])!r} behind every text, so a "
            "generation would begin behind it; set add_eos_token=false in its tokenizer_config.json"
        )


def _prove_row(encoder: ChatEncoder, messages: Sequence[Message], tools: Tools | None = None) -> None:
    row = encoder.conversation(messages, tools)
    rendered = _rendering(encoder, messages, generation=False, tools=tools)
    if row.input_ids != rendered[: len(row.input_ids)]:
        raise ValueError(
            f"the chat template of {encoder.name} renders {messages} as {encoder.tokenizer.decode(rendered)!r}, and a "
            f"training row would be {encoder.tokenizer.decode(row.input_ids)!r}; set another data.template"
        )


def _prove_prompt(encoder: ChatEncoder, messages: Sequence[Message]) -> None:
    labels = encoder.conversation(messages).labels
    prompt = _rendering(encoder, messages[:-1], generation=True)
    if labels.count(IGNORE) != len(prompt):
        joined = encoder.tokenizer.convert_ids_to_tokens(prompt)[labels.count(IGNORE) :]
        raise ValueError(
            f"generation with the chat template of {encoder.name} would begin behind {joined}, which its tokenizer "
            f"joins with the first letters of an answer as {messages[-1]['content']!r}, so training would never see "
            "it; let the generation prompt end before it, or set data.template=chatml, zephyr or llama3"
        )


def _rendering(
    encoder: ChatEncoder, messages: Sequence[Message], *, generation: bool, tools: Tools | None = None
) -> list[int]:
    """transformers' own tokens, with the BOS that the tokenizer would add to any other text."""
    ids = _plain_rendering(encoder.tokenizer, messages, generation=generation, tools=tools)
    return ids if ids[:1] == encoder.bos else encoder.bos + ids


def _plain_rendering(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    *,
    generation: bool,
    tools: Tools | None = None,
) -> list[int]:
    conversation: Any = messages
    given: Any = tools
    rendered: Any = tokenizer.apply_chat_template(
        conversation, tools=given, tokenize=True, add_generation_prompt=generation, return_dict=True
    )
    return list(rendered["input_ids"])
