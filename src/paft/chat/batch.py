"""Many rows as tokens at once, each as `ChatEncoder` encodes it alone.

A tokenizer takes special tokens out of a text before anything else and then reads what stands between them, each piece
without a look at the others. So texts are cut before the special tokens that the template writes, and a piece that
many of them hold, as a question that stands in the prompt, in the turn and in the whole conversation, is tokenised
once, and word by word where that is the same (`paft.chat.words`). What a batch asks of the tokenizer is asked in one
call, which a fast one spreads over the cores.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

from paft.chat.conversation import Conversation, Message, PreferencePair, UnpairedRow
from paft.chat.encode import NEVER, ChatEncoder
from paft.chat.labels import Encode
from paft.chat.template import PROBE, render
from paft.chat.tokens import Encoded, EncodedAnswer, EncodedPair
from paft.chat.words import Words, directly, reads_words_apart
from paft.config import SpecialTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Given = TypeVar("Given")
Made = TypeVar("Made")

QUESTION: list[Message] = [{"role": "user", "content": PROBE}]


class BatchEncoder(ChatEncoder):
    """`conversation` and `pair` of many rows in one call; the error of a row takes the place of its tokens."""

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", in_text: SpecialTokens = SpecialTokens.token
    ) -> None:
        super().__init__(tokenizer, in_text)
        written = render(tokenizer, QUESTION, generation=True) + self.end.marker
        if self.texts.marked:  # to be read as text, which no cut may go through
            self.cut_at([], by_word=False)
        else:
            by_word = reads_words_apart(tokenizer, self.encode_all, self.end.marker)
            self.cut_at(separate_tokens(tokenizer, written), by_word=by_word)

    def cut_at(self, tokens: list[str], *, by_word: bool) -> None:
        """From now on cut texts before each of the tokens, and into words."""
        self.cut = re.compile(f"({'|'.join(map(re.escape, tokens)) or NEVER})")
        self.labels = replace(self.labels, turns_apart=self.end.marker in tokens)
        self.read = Words(directly(self.tokenizer)).encode_all if by_word else self.encode_all

    def conversations(self, rows: Sequence[Conversation]) -> list[Encoded | ValueError]:
        turns = [_tried(lambda r: self.turns(r.messages, r.tools), row) for row in rows]
        encode = self._reader(chain.from_iterable(map(self.labels.asked, _good(turns))))
        return [_tried(lambda t: self.labels.row(t, encode), t) for t in turns]

    def pairs(self, rows: Sequence[PreferencePair]) -> list[EncodedPair | ValueError]:
        texts = [_tried(self.pair_texts, row) for row in rows]
        encode = self._reader(chain.from_iterable(_good(texts)))
        return [_tried(lambda t: self.labels.pair(t, encode), t) for t in texts]

    def answers(self, rows: Sequence[UnpairedRow]) -> list[EncodedAnswer | ValueError]:
        """As a pair has them whose answers are both the same."""
        both = [PreferencePair(r.prompt, r.completion, r.completion, r.tools) for r in rows]
        return [
            pair
            if isinstance(pair, ValueError)
            else EncodedAnswer(pair.prompt_ids, pair.chosen_ids, row.label, [])
            for row, pair in zip(rows, self.pairs(both), strict=True)
        ]

    def _reader(self, texts: Iterable[str]) -> Encode:
        """`encode`, with these texts tokenised here and now."""
        pieces = {text: self.pieces(text) for text in texts}
        distinct = list(dict.fromkeys(chain.from_iterable(pieces.values())))
        try:
            ids = dict(zip(distinct, self.read(distinct) if distinct else [], strict=True))
        except ValueError:
            return self.encode  # so that the one row it is about has the error

        def encode(text: str) -> list[int]:
            if text not in pieces:
                return self.encode(text)
            return list(chain.from_iterable(ids[piece] for piece in pieces[text]))

        return encode

    def pieces(self, text: str) -> list[str]:
        """The text cut before each of the tokens; put together again they are the text."""
        first, *rest = self.cut.split(text)
        behind = [mark + piece for mark, piece in zip(rest[::2], rest[1::2], strict=True)]
        return [first, *behind] if first else behind


def separate_tokens(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[str]:
    """Tokens of `text` that a fast tokenizer finds in every text that has them, whatever stands beside them.

    They are searched for before the text is normalised, take no white space along, and share no letters with another
    added token in any text. Other kinds of tokenizer promise nothing of the sort.
    """
    if not tokenizer.is_fast or tokenizer.split_special_tokens:
        return []
    added = list(tokenizer.added_tokens_decoder.values())
    if any(token.single_word for token in added):
        return []  # whether such a token is one depends on the letters beside it
    normalises = tokenizer.backend_tokenizer.normalizer is not None
    return [
        token.content
        for token in added
        if token.content in text
        and not (token.lstrip or token.rstrip or (token.normalized and normalises))
        and token.content == token.content.strip()
        and not any(_overlap(token.content, other.content) for other in added)
    ]


def _overlap(one: str, other: str) -> bool:
    """Whether some text holds both, or one twice, in places that share letters and are not the same."""
    if one != other and (one in other or other in one):
        return True
    shared = range(1, min(len(one), len(other)))
    return any(one.endswith(other[:n]) or other.endswith(one[:n]) for n in shared)


def _good(rows: Iterable[Made | ValueError]) -> Iterable[Made]:
    return (row for row in rows if not isinstance(row, ValueError))


def _tried(make: Callable[[Given], Made], row: Given | ValueError) -> Made | ValueError:
    """What is made of a row, or the error that it is or that comes of it."""
    if isinstance(row, ValueError):
        return row
    try:
        return make(row)
    except ValueError as error:
        return error
