"""Messages to tokens: the chat template applied, and which tokens are learnt.

A row has the tokens of the tokenizer's own rendering of the whole conversation, up to the end of turn of its last
answer; see `paft.chat.labels` for which of them are learnt.
"""

import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from paft.chat.conversation import TOOLS, Message, PreferencePair, Tools, beside_text, messages_of
from paft.chat.labels import Labels, PairTexts, Turn
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
from paft.versions import marker

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
ONE_ANSWER = "data.sft.answers=last, to learn the last answer of a row alone, or "


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
    """`encode_conversation` and `encode_pair` of many rows: what they need to know of the template is found once.

    A row becomes text first (`turns`, `pair_texts`) and then tokens (`labels`); `BatchEncoder` does so with many rows.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", in_text: SpecialTokens = SpecialTokens.token
    ) -> None:
        self.tokenizer = tokenizer
        self.name = model_name(tokenizer)
        self.end = end_of_turn(tokenizer)
        self.bos = [tokenizer.bos_token_id] if adds_bos(tokenizer) else []
        self.labels = Labels(self.end.marker, self.bos)
        self.texts = MessageTexts(tokenizer, in_text)

    def conversation(self, messages: Sequence[Message], tools: Tools | None = None) -> Encoded:
        return self.labels.row(self.turns(messages, tools), self.encode)

    def pair(self, pair: PreferencePair) -> EncodedPair:
        return self.labels.pair(self.pair_texts(pair), self.encode)

    def turns(self, messages: Sequence[Message], tools: Tools | None = None) -> list[Turn]:
        """The answers that are learnt, each with what stands before it: together the text of the row."""
        self._refuse_unknown(messages, tools)
        messages, tools = self.texts.prepared(messages), self.texts.read(tools or [])
        turns, before = list[Turn](), ""
        for at, message in enumerate(messages):
            if message["role"] == "assistant" and message.get("train", True):
                prompt, text = (
                    _extension(before, t, ONE_ANSWER) for t in self._turn(messages[:at], message, tools)
                )
                turns.append(Turn(prompt, text))
                before += text
        refuse_unwritten(messages, before, tools)
        return turns

    def pair_texts(self, pair: PreferencePair) -> PairTexts:
        self._refuse_unknown(messages_of(pair), pair.tools)
        tools = self.texts.read(pair.tools)
        prompt, answers = (self.texts.prepared(m) for m in (pair.prompt, [*pair.chosen, *pair.rejected]))
        (before, chosen), (_, rejected) = (self._turn(prompt, answer, tools) for answer in answers)
        refuse_unwritten([*prompt, answers[0]], chosen, tools)
        refuse_unwritten(answers[1:], rejected)
        return PairTexts(before, chosen, rejected)

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, without those that the tokenizer adds to it."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: list[str]) -> list[list[int]]:
        marked = {"sanitize_control_tokens": True} if self.texts.marked else {}
        ids: list[list[int]] = self.tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, verbose=False, **marked
        ).input_ids
        return ids

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


class MessageTexts:
    """What becomes of the special tokens that the messages of a row bring themselves."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", in_text: SpecialTokens) -> None:
        self.ends = end_tokens(tokenizer)
        self.in_text = in_text
        self.special = re.compile("|".join(map(re.escape, _control_tokens(tokenizer))) or NEVER)
        self.marked = in_text is SpecialTokens.text
        """Whether texts carry transformers' marks around what is not to become a token."""
        self.mark = marker() if self.marked else None

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
        if self.mark is not None:
            return self.mark(value, self.special)
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


def _extension(before: str, text: str, instead: str = "") -> str:
    if not text.startswith(before):
        raise ValueError(
            "the chat template rewrites earlier turns when a turn is added, so an answer cannot be located; "
            f"it wrote ...{before[-60:]!r} before and then ...{text[len(before) - 60 : len(before)]!r}. "
            f"Set {instead}data.template=chatml, zephyr or llama3"
        )
    return text[len(before) :]
