"""Messages to tokens: the chat template applied, and which tokens are learnt.

A row has the tokens of the tokenizer's own rendering of the whole conversation, up to the end of turn of its last
answer. An answer begins with the first token that this rendering has and the prompt's, with which generation will
begin, has not: right behind the prompt, unless the tokenizer joins the prompt's last letters with the answer's first,
as some join line feeds; then the joint token is learnt.
"""

import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from paft.chat.conversation import TOOLS, Message, PreferencePair, Tools, beside_text, messages_of
from paft.chat.template import (
    adds_bos,
    end_marker,
    end_of_turn,
    end_tokens,
    knows_tools,
    model_name,
    render,
    template_text,
)
from paft.chat.tokens import IGNORE, Encoded, EncodedPair, kept_lengths
from paft.chat.unwritten import refuse_unwritten, texts_in
from paft.config import SpecialTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "IGNORE",
    "ChatEncoder",
    "Encoded",
    "EncodedPair",
    "encode_conversation",
    "encode_pair",
    "end_marker",
    "end_tokens",
    "kept_lengths",
    "template_text",
    "unmarked",
    "without_end",
]

NEVER = r"(?!)"
"""A regular expression that matches nowhere."""


def encode_conversation(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    in_text: SpecialTokens = SpecialTokens.token,
    tools: Tools | None = None,
) -> Encoded:
    """Tokens of a conversation; learnt are the answers (but those with `train` false), each with its end-of-turn token.

    The tokenizer's `chat_template` is the template. BOS stands first exactly once if the tokenizer adds it
    or the template writes it. White space behind an end-of-turn token belongs to the next turn. `in_text` says what
    the name of a special token inside a message is. A tool call is learnt as an answer is, the result of a tool is not.
    Raises ValueError for a template without an end-of-turn token, one that does not write tools where there are some,
    or one that rewrites earlier turns.
    """
    return ChatEncoder(tokenizer, in_text).conversation(messages, tools)


def encode_pair(
    tokenizer: "PreTrainedTokenizerBase",
    pair: PreferencePair,
    in_text: SpecialTokens = SpecialTokens.token,
) -> EncodedPair:
    """Tokens of the prompt, as generation sees it, and of both answers, each with its end-of-turn token.

    The prompt with either answer is the rendering of that conversation. BOS, `in_text` and errors as in
    `encode_conversation`.
    """
    return ChatEncoder(tokenizer, in_text).pair(pair)


class ChatEncoder:
    """`encode_conversation` and `encode_pair` of many rows: what they need to know of the template is found once."""

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", in_text: SpecialTokens = SpecialTokens.token
    ) -> None:
        self.tokenizer = tokenizer
        self.name = model_name(tokenizer)
        self.end = end_of_turn(tokenizer)
        self.bos = [tokenizer.bos_token_id] if adds_bos(tokenizer) else []
        self.texts = MessageTexts(tokenizer, in_text)

    def conversation(self, messages: Sequence[Message], tools: Tools | None = None) -> Encoded:
        self._refuse_unknown(messages, tools)
        messages, tools = self.texts.prepared(messages), self.texts.read(tools or [])
        answers = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
        row, before = Encoded([], []), ""
        for at in answers:
            prompt, text = self._turn(messages[:at], messages[at], tools)
            context, turn = (self._encode_behind(before, _extension(before, t)) for t in (prompt, text))
            start = _answer_start(context, turn)
            row.input_ids.extend(turn)
            learnt = turn[start:] if messages[at].get("train", True) else [IGNORE] * (len(turn) - start)
            row.labels.extend([IGNORE] * start + learnt)
            before = text
        refuse_unwritten(messages, before, tools)
        if len(answers) > 1 and row.input_ids != self._encode_first(before):
            raise ValueError(
                "the tokenizer writes the conversation otherwise in one piece than turn by turn, so its answers cannot "
                "be located; set another data.template, whose turns end with a special token"
            )
        return row

    def pair(self, pair: PreferencePair) -> EncodedPair:
        self._refuse_unknown(messages_of(pair), pair.tools)
        tools = self.texts.read(pair.tools)
        prompt, answers = (self.texts.prepared(m) for m in (pair.prompt, [*pair.chosen, *pair.rejected]))
        (before, chosen), (_, rejected) = (self._turn(prompt, answer, tools) for answer in answers)
        refuse_unwritten([*prompt, answers[0]], chosen, tools)
        refuse_unwritten(answers[1:], rejected)
        prompt_ids, chosen_ids, rejected_ids = map(self._encode_first, (before, chosen, rejected))
        start = min(_answer_start(prompt_ids, ids) for ids in (chosen_ids, rejected_ids))
        return EncodedPair(chosen_ids[:start], chosen_ids[start:], rejected_ids[start:])

    @cached_property
    def knows_tools(self) -> bool:
        return knows_tools(self.tokenizer)

    def _refuse_unknown(self, messages: Sequence[Message], tools: Tools | None) -> None:
        there = [kind for kind in beside_text(messages, tools or []) if kind in TOOLS]
        if there and not self.knows_tools:
            raise ValueError(
                f"the row has {', '.join(there)}, and the chat template of {self.name} writes no tools; set "
                "data.template=tokenizer with a base whose own chat template does, or remove the row"
            )

    def _turn(self, prompt: Sequence[Message], answer: Message, tools: Tools) -> tuple[str, str]:
        """Text of the prompt as generation sees it, and of the conversation up to and including the answer's end."""
        before = render(self.tokenizer, prompt, generation=True, tools=tools)
        text = render(self.tokenizer, [*prompt, answer], generation=False, tools=tools)
        _extension(before, text)
        if not text.endswith("".join(self.end)):
            raise ValueError(
                f"the chat template ends an answer with ...{text[-60:]!r}, others with {''.join(self.end)!r}; "
                "set data.template=chatml, zephyr or llama3"
            )
        return before, text.removesuffix(self.end.behind)

    def _encode(self, text: str) -> list[int]:
        if self.texts.marked:
            return list(
                self.tokenizer(text, add_special_tokens=False, sanitize_control_tokens=True).input_ids
            )
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    def _encode_first(self, text: str) -> list[int]:
        """Tokens of a text that stands first: with the tokenizer's BOS, unless the text begins with it."""
        ids = self._encode(text)
        return ids if ids[:1] == self.bos else self.bos + ids

    def _encode_behind(self, before: str, text: str) -> list[int]:
        """Tokens of a text behind another, which ends with the end-of-turn token, or is nothing.

        SentencePiece would else write a space before its first word.
        """
        if not before:
            return self._encode_first(text)
        alone, joint = self._encode(self.end.marker), self._encode(self.end.marker + text)
        return joint[len(alone) :] if joint[: len(alone)] == alone else self._encode(text)


class MessageTexts:
    """What becomes of the special tokens that the messages of a row bring themselves."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", in_text: SpecialTokens) -> None:
        self.ends = end_tokens(tokenizer)
        self.in_text = in_text
        self.special = re.compile("|".join(map(re.escape, _control_tokens(tokenizer))) or NEVER)
        self.marked = in_text is SpecialTokens.text
        """Whether texts carry transformers' marks around what is not to become a token."""

    def prepared(self, messages: Sequence[Message]) -> list[Message]:
        plain = unmarked(messages, self.ends)
        return plain if self.in_text is SpecialTokens.token else [self._prepared(m) for m in plain]

    def _prepared(self, message: Message) -> Message:
        texts = ("content", "reasoning_content", "tool_calls")
        return cast(Message, {n: self.read(said) if n in texts else said for n, said in message.items()})

    def read(self, value: Any) -> Any:
        """A text, or texts in lists and objects, as the tokenizer is to be given them."""
        if self.in_text is SpecialTokens.error:
            for text in texts_in(value):
                self._refuse_special(text)
        if self.marked:
            from transformers.utils.chat_template_utils import mark_control_tokens

            return mark_control_tokens(value, self.special)
        return value

    def _refuse_special(self, text: str) -> None:
        if found := self.special.search(text):
            raise ValueError(
                f"a message holds the text {found[0]!r}, which is a special token to the tokenizer; remove it, or set "
                "special_tokens_in_text=text to read it as text, or =token"
            )


def unmarked(messages: Sequence[Message], ends: tuple[str, ...]) -> list[Message]:
    """The messages without the `end_tokens` that the data itself brings, which would then stand twice.

    Of a message that is no answer only the end of turn goes: somebody may ask what an EOS is.
    """
    return [
        {**m, "content": without_end(m["content"], ends if m["role"] == "assistant" else ends[:1])}
        for m in messages
    ]


def without_end(content: str, ends: tuple[str, ...]) -> str:
    """What comes before the `ends` with which a message ends, and before white space behind each of them."""
    while (text := content.rstrip()).endswith(ends):
        content = text.removesuffix(next(end for end in ends if text.endswith(end)))
    return content


def _control_tokens(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Special tokens, and those that the template writes, longest first."""
    template = str(tokenizer.chat_template)
    added = [t for t in tokenizer.added_tokens_decoder.values() if t.special or t.content in template]
    return sorted((t.content for t in added if t.content.strip()), key=len, reverse=True)


def _extension(before: str, text: str) -> str:
    if not text.startswith(before):
        raise ValueError(
            "the chat template rewrites earlier turns when a turn is added, so an answer cannot be located; "
            f"it wrote ...{before[-60:]!r} before and then ...{text[len(before) - 60 : len(before)]!r}. "
            "Set data.template=chatml, zephyr or llama3"
        )
    return text[len(before) :]


def _answer_start(prompt: Sequence[int], turn: Sequence[int]) -> int:
    """How many tokens a prompt and the turn that it begins have in common before they differ."""
    pairs = enumerate(zip(prompt, turn, strict=False))
    start = next((at for at, (a, b) in pairs if a != b), min(len(prompt), len(turn)))
    if not start:
        raise ValueError("the tokenizer joins the whole prompt with the answer; set another data.template")
    return start
