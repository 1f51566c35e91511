"""Messages to tokens: the chat template, which tokens are learnt, and what goes when a row is too long.

The text is rendered turn by turn and each piece is tokenised on its own, so a training prompt has exactly
the tokens that generation will see, and an answer ends exactly at its end-of-turn token.
"""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jinja2

from paft.config import Source, Template
from paft.data.rows import Message, PreferencePair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE = -100
"""Label of a token that is not learnt; torch's cross entropy skips it."""

TEMPLATES = Path(__file__).parent / "templates"
PROBE = "a probe of the template"
STOP_STRINGS = {
    Template.chatml: ["<|im_end|>", "<|im_start|>"],
    Template.zephyr: ["<|user|>", "<|system|>", "<|assistant|>"],
    Template.llama3: ["<|eot_id|>", "<|start_header_id|>"],
    Template.tokenizer: [],
}


class Encoded(NamedTuple):
    """One SFT row. `labels` are `input_ids` (not shifted), or IGNORE outside the answers."""

    input_ids: list[int]
    labels: list[int]

    @property
    def prompt_length(self) -> int:
        """Tokens before the last answer."""
        return len(self.labels) - self.labels[::-1].index(IGNORE)

    @property
    def answer_lengths(self) -> dict[str, int]:
        return {"answer": len(self.labels) - self.prompt_length}

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence that a training step reads."""
        return [len(self.input_ids)]

    @property
    def row_tokens(self) -> int:
        """Tokens it puts through the model."""
        return len(self.input_ids)

    @property
    def num_labels(self) -> int:
        return len(self.labels) - self.labels.count(IGNORE)

    def fitted(self, source: Source, bos_token_id: int | None) -> "Encoded":
        """The row within `max_length` tokens; see `kept_lengths`. Earlier answers are part of the prompt."""
        start, (answer,) = self.prompt_length, self.answer_lengths.values()
        prompt, answer = kept_lengths(start, answer, source.max_length, source)
        bos = self.input_ids[0] == bos_token_id
        ids, labels = (
            _newest(values[:start], prompt, keep_first=bos) + values[start : start + answer]
            for values in self
        )
        return Encoded(ids, labels)


class EncodedPair(NamedTuple):
    """One preference row: a prompt, then either answer, each ending with its end-of-turn token."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]

    @property
    def prompt_length(self) -> int:
        return len(self.prompt_ids)

    @property
    def answer_lengths(self) -> dict[str, int]:
        return {"chosen": len(self.chosen_ids), "rejected": len(self.rejected_ids)}

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence that a training step reads."""
        return [self.prompt_length + answer for answer in self.answer_lengths.values()]

    @property
    def row_tokens(self) -> int:
        """Tokens it puts through the model, the prompt shared by both answers; see paft.training.pairs."""
        return len(self.prompt_ids) + len(self.chosen_ids) + 1 + len(self.rejected_ids)

    @property
    def num_labels(self) -> int:
        return sum(self.answer_lengths.values())

    def fitted(self, source: Source, bos_token_id: int | None) -> "EncodedPair":
        """The pair within `max_prompt_length` and `max_length` tokens; both answers keep the same prompt."""
        longest = max(self.answer_lengths.values())
        prompt, answer = kept_lengths(self.prompt_length, longest, source.max_prompt_length, source)
        prompt_ids = _newest(self.prompt_ids, prompt, keep_first=self.prompt_ids[0] == bos_token_id)
        return EncodedPair(prompt_ids, self.chosen_ids[:answer], self.rejected_ids[:answer])


def kept_lengths(prompt: int, answer: int, prompt_limit: int, source: Source) -> tuple[int, int]:
    """How many tokens of a prompt (its newest) and of its answer (its first) are kept.

    An answer of up to `max_length - 1` tokens is kept whole, and the prompt loses its oldest tokens, but
    never BOS, until it has at most `prompt_limit` and both together at most `max_length`. A longer answer
    needs `too_long=truncate`: then the prompt keeps up to `max_prompt_length` and the answer fills the rest.
    The limit is `max_prompt_length` for preference pairs and `max_length` for conversations, which are
    therefore kept whole whenever they fit.
    """
    if answer < source.max_length:
        return min(prompt, prompt_limit, source.max_length - answer), answer
    prompt = min(prompt, source.max_prompt_length)
    return prompt, source.max_length - prompt


def _newest(values: list[int], keep: int, *, keep_first: bool) -> list[int]:
    if keep >= len(values):
        return values
    newest = values[len(values) - keep :]
    return values[:1] + newest[1:] if keep_first else newest


# --- template ----------------------------------------------------------------------------------------


def template_text(template: Template, tokenizer: "PreTrainedTokenizerBase") -> str:
    """The Jinja text of a template: one that PAFT ships, or for `tokenizer` the tokenizer's own.

    No template shipped here inserts a system message. `zephyr` renders as the alignment-handbook's and
    `llama3` as Meta's. Raises ValueError naming the model if it has no template of its own.
    """
    if template is not Template.tokenizer:
        return (TEMPLATES / f"{template.value}.jinja").read_text(encoding="utf-8")
    if not isinstance(tokenizer.chat_template, str):
        shipped = ", ".join(name.value for name in Template if name is not Template.tokenizer)
        raise ValueError(
            f"the tokenizer of {_name(tokenizer)} has no chat template of its own "
            f"(base models have none); set data.template to one of {shipped}"
        )
    return tokenizer.chat_template


def stop_strings(template: Template) -> list[str]:
    """What ends an answer in generated text, besides the `end_marker` token: the marks of another turn."""
    return list(STOP_STRINGS[template])


def end_marker(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The end-of-turn token that the tokenizer's `chat_template` writes after an answer.

    Raises ValueError if there is none, or if it is ordinary text to this tokenizer: several tokens, which
    neither training nor generation would treat as the end of a turn.
    """
    messages: list[Message] = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": PROBE}]
    marker = _render(tokenizer, messages, generation=False).rpartition(PROBE)[2].strip()
    ids = _encode(tokenizer, marker)
    if tokenizer.convert_ids_to_tokens(ids) != [marker]:
        wrong = f"with {marker!r}, which is {len(ids)} tokens" if marker else "with nothing"
        raise ValueError(
            f"the chat template ends a turn {wrong} to the tokenizer of {_name(tokenizer)}; it must be one "
            "token of the vocabulary to be learnt. Set data.template=zephyr, which ends a turn with the "
            f"tokenizer's EOS {tokenizer.eos_token!r}, or choose a model whose tokenizer has the token"
        )
    return marker


def end_tokens(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, ...]:
    """The `end_marker`, and the tokenizer's EOS if that is another token: what no message's text ends with."""
    marker, eos = end_marker(tokenizer), tokenizer.eos_token
    return (marker, eos) if eos and eos != marker else (marker,)


def _name(tokenizer: "PreTrainedTokenizerBase") -> str:
    return tokenizer.name_or_path or "this model"


def _render(tokenizer: "PreTrainedTokenizerBase", messages: list[Message], *, generation: bool) -> str:
    plain = [{"role": message["role"], "content": message["content"]} for message in messages]
    try:
        return str(tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=generation))
    except jinja2.TemplateError as error:
        raise ValueError(
            f"the chat template refuses the messages: {error}; try another data.template"
        ) from None


# --- tokens ------------------------------------------------------------------------------------------


def encode_conversation(tokenizer: "PreTrainedTokenizerBase", messages: list[Message]) -> Encoded:
    """Tokens of a conversation; learnt are the answers (but those with `train` false), each with its end-of-turn token.

    The tokenizer's `chat_template` is the template. BOS stands first exactly once if the tokenizer adds it
    or the template writes it. White space behind an end-of-turn token belongs to the next turn. Raises
    ValueError for a template without an end-of-turn token, or one that rewrites earlier turns.
    """
    marker, *_ = ends = end_tokens(tokenizer)
    messages = unmarked(messages, ends)
    row, before = Encoded([], []), ""
    for at in (at for at, message in enumerate(messages) if message["role"] == "assistant"):
        prompt, answer = _turn(tokenizer, messages[:at], messages[at])
        context = _extension(before, prompt)
        context_ids = (
            _encode_after(tokenizer, marker, context) if before else _encode_start(tokenizer, context)
        )
        answer_ids = _encode_answer(tokenizer, messages[:at], prompt, answer)
        labels = answer_ids if messages[at].get("train", True) else [IGNORE] * len(answer_ids)
        row.input_ids.extend(context_ids + answer_ids)
        row.labels.extend([IGNORE] * len(context_ids) + labels)
        before = prompt + answer
    return row


def encode_pair(tokenizer: "PreTrainedTokenizerBase", pair: PreferencePair) -> EncodedPair:
    """Tokens of the prompt, as generation sees it, and of both answers, each with its end-of-turn token.

    BOS and errors as in `encode_conversation`.
    """
    ends = end_tokens(tokenizer)
    prompt, answers = unmarked(pair.prompt, ends), unmarked([*pair.chosen, *pair.rejected], ends)
    (before, chosen), (_, rejected) = (_turn(tokenizer, prompt, answer) for answer in answers)
    answer_ids = [_encode_answer(tokenizer, prompt, before, answer) for answer in (chosen, rejected)]
    return EncodedPair(_encode_start(tokenizer, before), *answer_ids)


def unmarked(messages: list[Message], ends: tuple[str, ...]) -> list[Message]:
    """The messages without the ends that the data itself brings, which would then stand twice."""
    return [{**message, "content": without_end(message["content"], ends)} for message in messages]


def without_end(content: str, ends: tuple[str, ...]) -> str:
    """What comes before the `end_tokens` with which a message ends, and before white space behind each of them."""
    while (text := content.rstrip()).endswith(ends):
        content = text.removesuffix(next(end for end in ends if text.endswith(end)))
    return content


def _turn(tokenizer: "PreTrainedTokenizerBase", prompt: list[Message], answer: Message) -> tuple[str, str]:
    """Text of the prompt as generation sees it, and of the answer up to and including its end marker."""
    before = _render(tokenizer, prompt, generation=True)
    text = _extension(before, _render(tokenizer, [*prompt, answer], generation=False))
    return before, text.rstrip()


def _extension(before: str, text: str) -> str:
    if not text.startswith(before):
        raise ValueError(
            "the chat template rewrites earlier turns when a turn is added, so an answer cannot be located; "
            f"it wrote ...{before[-60:]!r} before and then ...{text[len(before) - 60 : len(before)]!r}. "
            "Set data.template=chatml, zephyr or llama3"
        )
    return text[len(before) :]


def _encode(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def _encode_start(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Tokens of a text that stands first: with the tokenizer's BOS, unless the text begins with it."""
    ids, added = _encode(tokenizer, text), list(tokenizer("").input_ids[:1])
    return ids if not added or added != [tokenizer.bos_token_id] or ids[:1] == added else added + ids


def _encode_after(tokenizer: "PreTrainedTokenizerBase", before: str, text: str) -> list[int]:
    """Tokens of a text that follows another; SentencePiece would else write a space before its first word."""
    alone, joint = _encode(tokenizer, before), _encode(tokenizer, before + text)
    return joint[len(alone) :] if joint[: len(alone)] == alone else _encode(tokenizer, text)


def _encode_answer(
    tokenizer: "PreTrainedTokenizerBase", messages: list[Message], prompt: str, answer: str
) -> list[int]:
    header = prompt.removeprefix(_render(tokenizer, messages, generation=False))
    return _encode_after(tokenizer, header if len(header) < len(prompt) else "", answer)
