"""Tokens of texts from those of their words, against the tokenizer's own of each text."""

import pytest
from chat_tokenizers import KINDS, WORDS, tokenizer_of
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from paft.chat import words
from paft.chat.encode import ChatEncoder
from paft.chat.words import Words, reads_words_apart

APART = {"byte level", "byte level, prefix space", "byte level without words", "sentencepiece first",
         "sentencepiece always", "sentencepiece never"}  # fmt: skip
PATTERNS = {
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
}
TEXTS = [
    "Hello, my name is 12 + 30?", "  two  spaces and\ttab \n\n line ", "it's 'quoted' (and) so - on",
    "\u00a0 a \u3000b",
    "é ́ 東京 は 🙂 🙂", "", " ", "a", "x <|im_end|> y<|im_end|> z", "1 2 34 567 8901 .5 ,6",
    "line\n  indented code = 1",
]  # fmt: skip


def apart(tokenizer: PreTrainedTokenizerFast) -> bool:
    return reads_words_apart(tokenizer, ChatEncoder(tokenizer).encode_all, "<|im_end|>")


def split_by(pattern: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of another family's words."""
    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        [WORDS, *TEXTS] * 4,
        trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False),
    )
    core.add_special_tokens([AddedToken("<|im_end|>", special=True, normalized=False)])
    fast = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>")
    fast.chat_template = tokenizer_of("byte level", "chatml").chat_template
    return fast


@pytest.mark.parametrize("kind", KINDS)
def test_texts_by_word_against_texts(kind: str) -> None:
    tokenizer = tokenizer_of(kind, "chatml")
    assert apart(tokenizer) is (kind in APART)
    if kind in APART:
        encode_all = ChatEncoder(tokenizer).encode_all
        assert Words(encode_all).encode_all(TEXTS) == encode_all(TEXTS)


@pytest.mark.parametrize("family", PATTERNS)
def test_words_of_other_families_against_texts(family: str) -> None:
    tokenizer = split_by(PATTERNS[family])
    encode_all = ChatEncoder(tokenizer).encode_all
    assert apart(tokenizer)
    assert Words(encode_all).encode_all(TEXTS) == encode_all(TEXTS)


def test_words_that_are_forgotten_are_learnt_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "CHARACTERS", 5)
    encode_all = ChatEncoder(tokenizer_of("byte level", "chatml")).encode_all
    by_word = Words(encode_all)
    for text in TEXTS * 2:
        assert by_word.encode_all([text]) == encode_all([text])


@pytest.mark.parametrize("token", ["Ġof Ġthe".replace(" ", ""), "▁of▁the", "of the"])
def test_a_token_of_two_words_forbids_to_cut_them(token: str) -> None:
    tokenizer = tokenizer_of("byte level", "chatml")
    tokenizer.add_tokens([AddedToken(token, normalized=False)])
    assert not apart(tokenizer)


@pytest.mark.parametrize("token", ["ĠĠĠ", "ĊĠ", "ÂłĠ", "ĉĠa", "▁▁", "Ġof"])
def test_space_behind_space_forbids_nothing(token: str) -> None:
    assert words._none_spans(["a", token, "b"])


def test_a_token_that_takes_space_along_forbids_to_cut_words() -> None:
    tokenizer = tokenizer_of("byte level", "chatml")
    tokenizer.add_tokens([AddedToken("<t>", normalized=False, rstrip=True)])
    assert not apart(tokenizer)
