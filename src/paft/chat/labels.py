"""The texts of a row as tokens, and which of them are learnt.

An answer begins with the first token that the rendering of the whole conversation has and the prompt's, with which
generation will begin, has not: right behind the prompt, unless the tokenizer joins the prompt's last letters with the
answer's first, as some join line feeds; then the joint token is learnt.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from paft.chat.tokens import IGNORE, Encoded, EncodedPair

Encode = Callable[[str], list[int]]
"""The tokens of a text, without those that a tokenizer adds to it. The list is not to be changed."""


class Turn(NamedTuple):
    """An answer that is learnt, as text, with what stands between the end of the one before it and its own."""

    prompt: str
    """Up to where the answer begins, as generation sees it."""
    text: str
    """The prompt, the answer and the end of turn."""


class PairTexts(NamedTuple):
    """The prompt as generation sees it, and that conversation up to the end of either answer."""

    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Labels:
    """Texts to `Encoded` and `EncodedPair`. Errors are `ValueError`s about the template."""

    end: str
    """The token that ends an answer."""
    bos: list[int]
    """What the tokenizer puts before every text by itself: its BOS, or nothing."""
    turns_apart: bool = False
    """Whether the tokenizer is known to read what is on either side of the end apart."""

    def row(self, turns: Sequence[Turn], encode: Encode) -> Encoded:
        row = Encoded([], [])
        for turn in turns:
            read = self._behind if row.input_ids else self._first
            prompt, ids = read(turn.prompt, encode), read(turn.text, encode)
            start = _answer_start(prompt, ids)
            row.input_ids.extend(ids)
            row.labels.extend([IGNORE] * start + ids[start:])
        if self._one_piece(turns) and row.input_ids != self._first(_joined(turns), encode):
            raise ValueError(
                "the tokenizer writes the conversation otherwise in one piece than turn by turn, so its answers cannot "
                "be located; set another data.template, whose turns end with a special token"
            )
        return row

    def asked(self, turns: Sequence[Turn]) -> Iterator[str]:
        """The texts whose tokens `row` asks for, but for those it needs where the end is joined with what follows."""
        yield self.end
        for at, turn in enumerate(turns):
            before = self.end if at else ""
            yield before + turn.prompt
            yield before + turn.text
        if self._one_piece(turns):
            yield _joined(turns)

    def _one_piece(self, turns: Sequence[Turn]) -> bool:
        """Whether the row must be compared with what the tokenizer makes of its text in one piece."""
        return len(turns) > 1 and not self.turns_apart

    def pair(self, texts: PairTexts, encode: Encode) -> EncodedPair:
        prompt, chosen, rejected = (self._first(text, encode) for text in texts)
        start = min(_answer_start(prompt, ids) for ids in (chosen, rejected))
        return EncodedPair(chosen[:start], chosen[start:], rejected[start:])

    def _first(self, text: str, encode: Encode) -> list[int]:
        """Tokens of a text that stands first: with the tokenizer's BOS, unless the text begins with it."""
        ids = encode(text)
        return ids if ids[:1] == self.bos else self.bos + ids

    def _behind(self, text: str, encode: Encode) -> list[int]:
        """Tokens of a text behind the end-of-turn token.

        SentencePiece would else write a space before its first word.
        """
        alone, joint = encode(self.end), encode(self.end + text)
        return joint[len(alone) :] if joint[: len(alone)] == alone else encode(text)


def _joined(turns: Sequence[Turn]) -> str:
    return "".join(turn.text for turn in turns)


def _answer_start(prompt: list[int], turn: list[int]) -> int:
    """How many tokens a prompt and the turn that it begins have in common before they differ."""
    start = min(len(prompt), len(turn))
    if prompt[:start] != turn[:start]:
        start = next(at for at, (a, b) in enumerate(zip(prompt, turn, strict=False)) if a != b)
    if not start:
        raise ValueError("the tokenizer joins the whole prompt with the answer; set another data.template")
    return start
