"""Texts as tokens word by word: a tokenizer is asked for each word once, however often a file has it.

Tokenising is most of a data stage, and its texts repeat their words. A text is cut at single spaces with something else
on either side, where most byte-pair tokenizers begin a new token and a new account of what stands before it. That is
no rule, so it is looked up and tried out for each tokenizer; one that fails reads every text in one piece.
"""

import json
import re
from array import array
from collections.abc import Callable, Iterable
from itertools import chain, product
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EncodeAll = Callable[[list[str]], list[list[int]]]

SPACE = re.compile(r" (?<=\S )(?=\S)")
BEFORE = "a"
"""What a word stands behind when it is tokenised; some tokenizers write another space before the first word."""
CHARACTERS = 2**22
"""Of words that are remembered: about 100 MB with their tokens. Then all are forgotten."""

CHANGES = {"NFC", "Prepend", "Replace"}
"""What may happen to a text beforehand; none of it reaches over a space that stays one."""
SPANNING = re.compile(
    r"[^\s\u0120\u2581\u010a\u010d\u0109](?<!\u00c2\u0142)(?<!\u00e3\u0122\u0122)[ \u0120\u2581]"
)
"""In a token of byte-level vocabularies or SentencePiece's: a space behind what is none itself."""
SAMPLES = (
    *(
        "a",
        "Z",
        "é",
        "ß",
        "東",
        "1",
        "23",
        ".",
        ",",
        "'",
        "'s",
        '"',
        "(",
        "-",
        "_",
        "/",
        "<",
        "\u0301",
        "🙂",
        "\na",
    ),
)


class Words:
    """Tokens of texts from those of their words, which it remembers: the same if `reads_words_apart` says so."""

    def __init__(self, encode_all: EncodeAll) -> None:
        self._encode_all = encode_all
        self._first: dict[str, bytes] = {}
        self._behind: dict[str, bytes] = {}
        self._characters = 0

    def encode_all(self, texts: list[str]) -> list[list[int]]:
        tails = [SPACE.split(text) for text in texts]
        heads = [words.pop(0) for words in tails]
        self._learn(set(heads), set(chain.from_iterable(tails)))
        first, behind = self._first, self._behind.__getitem__
        return [
            _ids(first[head] + b"".join(map(behind, tail))) for head, tail in zip(heads, tails, strict=True)
        ]

    def _learn(self, heads: set[str], words: set[str]) -> None:
        if self._characters > CHARACTERS:
            self._first, self._behind, self._characters = {}, {}, 0
        heads, words = heads - self._first.keys(), words - self._behind.keys()
        before, *ids = self._encode_all([BEFORE, *heads, *(f"{BEFORE} {word}" for word in words)])
        self._first.update(zip(heads, map(_bytes, ids), strict=False))
        behind = (_bytes(tokens[len(before) :]) for tokens in ids[len(heads) :])
        self._behind.update(zip(words, behind, strict=True))
        self._characters += sum(map(len, chain(heads, words)))


def _bytes(ids: list[int]) -> bytes:
    return array("i", ids).tobytes()


def _ids(ids: bytes) -> list[int]:
    return memoryview(ids).cast("i").tolist()


def reads_words_apart(tokenizer: "PreTrainedTokenizerBase", encode_all: EncodeAll, end: str) -> bool:
    """Whether the tokens of a text are those of its words, one after another. `end` is the end of a turn.

    Byte-pair merges left of a place do not change those right of it unless some token reaches over it, so no token of
    the vocabulary may; and words of every kind of character are tried beside each other, for what happens before.
    """
    if not (_is_plain(tokenizer) and _none_spans(tokenizer.get_vocab())):
        return False
    return _alike(Words(directly(tokenizer)).encode_all, encode_all, (*SAMPLES, end))


def directly(tokenizer: "PreTrainedTokenizerBase") -> EncodeAll:
    """The ids of texts by a fast tokenizer's library itself, which keeps no account of where each token stood."""
    backend = tokenizer.backend_tokenizer

    def encode_all(texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]

    return encode_all


def _is_plain(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether it is a byte-pair tokenizer without chance, and without tokens that take the space beside them along."""
    from tokenizers.models import BPE

    if not tokenizer.is_fast or tokenizer.split_special_tokens:
        return False
    backend = tokenizer.backend_tokenizer
    if not isinstance(backend.model, BPE) or backend.model.dropout:
        return False
    state = json.loads(backend.normalizer.__getstate__()) if backend.normalizer else {}
    steps = state.get("normalizers", [state] if state else [])
    added = tokenizer.added_tokens_decoder.values()
    return {step["type"] for step in steps} <= CHANGES and not any(t.lstrip or t.rstrip for t in added)


def _none_spans(vocabulary: Iterable[str]) -> bool:
    return not SPANNING.search("\n".join(vocabulary))


def _alike(by_word: EncodeAll, encode_all: EncodeAll, samples: tuple[str, ...]) -> bool:
    """Any two samples as a word, before and behind every other."""
    texts = [
        " ".join(chain.from_iterable((one + other, behind) for behind in samples))
        for one, other in product(samples, samples)
    ]
    return by_word(texts) == encode_all(texts)
