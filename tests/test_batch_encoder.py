"""Rows of a batch against `ChatEncoder` on each row alone, which is their definition: tokens, labels and errors."""

from collections.abc import Callable, Sequence
from functools import cache

import pytest
from chat_tokenizers import KINDS, MARKS, TEMPLATES, tokenizer_of
from hypothesis import given
from hypothesis import strategies as st
from test_chat_templates import CHATS, chat
from tokenizers import AddedToken, normalizers
from transformers import BatchEncoding, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from paft.chat import batch
from paft.chat.batch import BatchEncoder, separate_tokens
from paft.chat.conversation import Conversation, Message, PreferencePair
from paft.chat.encode import ChatEncoder
from paft.chat.proof import proved_encoder
from paft.chat.words import EncodeAll, directly
from paft.config import SpecialTokens

MARKED = chat(
    "What does <|im_end|> do?", "<|im_start|>user\nIt ends </s> a turn<|im_end|>", "And <s>", " no \n"
)
REFUSED = chat("a", "No", system="Be brief.")


def outcome(encode: Callable, row: object) -> object:
    """Tokens, or the error in its words."""
    try:
        result = encode(row)
    except ValueError as error:
        result = error
    return str(result) if isinstance(result, ValueError) else result


def assert_same(
    tokenizer: PreTrainedTokenizerFast,
    chats: Sequence[list[Message]],
    in_text: SpecialTokens = SpecialTokens.token,
) -> None:
    assert_alike(ChatEncoder(tokenizer, in_text), BatchEncoder(tokenizer, in_text), chats)


def assert_alike(alone: ChatEncoder, batch: BatchEncoder, chats: Sequence[list[Message]]) -> None:
    expected = [outcome(alone.conversation, messages) for messages in chats]
    found = batch.conversations([Conversation(messages) for messages in chats])
    assert [str(row) if isinstance(row, ValueError) else row for row in found] == expected
    pairs = [
        PreferencePair(c[:-1], c[-1:], [{"role": "assistant", "content": other}])
        for c, other in zip(chats, ["No", "\n\nyes", " An", "12", ""] * len(chats), strict=False)
    ]
    expected = [outcome(alone.pair, pair) for pair in pairs]
    assert [str(row) if isinstance(row, ValueError) else row for row in batch.pairs(pairs)] == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("bos", [False, True])
def test_rows_of_a_batch_against_rows_alone(kind: str, template: str, bos: bool) -> None:
    assert_same(tokenizer_of(kind, template, adds_bos=bos), [*CHATS.values(), MARKED, *CHATS.values()])


@pytest.mark.parametrize("kind", ["byte level", "sentencepiece legacy", "wordpiece"])
@pytest.mark.parametrize("in_text", SpecialTokens)
def test_marks_in_text_against_rows_alone(kind: str, in_text: SpecialTokens) -> None:
    assert_same(tokenizer_of(kind, "chatml"), [*CHATS.values(), MARKED], in_text)


text = st.lists(st.sampled_from([*MARKS, " ", "\n", "<", "|>", "a", "yes", "12", "ü", "東"]), max_size=8).map(
    "".join
)
turns = st.lists(st.tuples(text, text), min_size=1, max_size=3).map(lambda said: chat(*sum(said, ())))


@cache
def encoders(kind: str, template: str) -> tuple[ChatEncoder, BatchEncoder]:
    tokenizer = tokenizer_of(kind, template)
    return ChatEncoder(tokenizer), BatchEncoder(tokenizer)


@pytest.mark.parametrize("template", ["chatml", "zephyr", "mistral_v3"])
@given(st.sampled_from(list(KINDS)), st.lists(turns, min_size=1, max_size=4))
def test_any_text_against_rows_alone(template: str, kind: str, chats: list[list[Message]]) -> None:
    assert_alike(*encoders(kind, template), chats)


# --- where texts are cut -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "cuts"),
    [
        (AddedToken("<|im_end|>\n<|im_start|>user\nb", normalized=False), []),
        (AddedToken("|>b", normalized=False), []),
        (AddedToken("word", normalized=False, single_word=True), []),
        (AddedToken("b", normalized=False, lstrip=True, rstrip=True), ["<|im_start|>", "<|im_end|>"]),
    ],
    ids=["holds both", "begins in both", "depends on its neighbours", "takes space along"],
)
def test_no_cut_where_another_token_may_read_over_it(token: AddedToken, cuts: list[str]) -> None:
    tokenizer = tokenizer_of("byte level", "chatml")
    written = "<|im_start|>user\n<|im_end|>"
    assert separate_tokens(tokenizer, written) == ["<|im_start|>", "<|im_end|>"]
    tokenizer.add_tokens([token])
    assert separate_tokens(tokenizer, written) == cuts
    assert_same(tokenizer, [chat("a", "No", "b", "No"), chat("b ", "b", " word", "b \nb"), chat("a", "No")])


@pytest.mark.parametrize("option", ["lstrip", "rstrip", "normalized"])
def test_no_cut_at_a_token_that_depends_on_what_stands_beside_it(option: str) -> None:
    tokenizer = tokenizer_of("byte level", "chatml")
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    token = AddedToken("<|im_end|>", special=True, **({"normalized": False} | {option: True}))
    tokenizer.backend_tokenizer.add_special_tokens([token])
    assert separate_tokens(tokenizer, "<|im_start|>user\n<|im_end|>") == ["<|im_start|>"]
    assert_same(tokenizer, [*CHATS.values(), MARKED])


@pytest.mark.parametrize(
    ("kind", "template", "at_most"),
    [
        ("byte level", "chatml", 0.35),
        ("byte level", "llama2", 0.35),
        ("unigram", "chatml", 1.1),
        ("unigram", "llama3", 1.1),
        ("unigram", "llama2", 1.6),
    ],
)
def test_no_text_goes_to_the_tokenizer_twice(
    kind: str, template: str, at_most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a word that stands in four rows, where words are read apart. A prompt of Llama-2 ends in the question's
    words, not in a mark, and is given once more."""
    given: list[str] = []

    class Listening(BatchEncoder):
        def encode_all(self, texts: list[str]) -> list[list[int]]:
            given.extend(texts)
            return super().encode_all(texts)

    def listening(tokenizer: PreTrainedTokenizerBase) -> EncodeAll:
        encode_all = directly(tokenizer)
        return lambda texts: given.extend(texts) or encode_all(texts)

    monkeypatch.setattr(batch, "directly", listening)

    def said(row: int, turn: int) -> str:
        return f"{row} {turn} " + " ".join(f"{turn}word{at}" for at in range(200))

    encoder = Listening(tokenizer_of(kind, template))
    rows = [Conversation(chat(*(said(row, turn) for turn in range(6)))) for row in range(4)]
    whole = sum(len(turn.text) for row in rows for turn in encoder.turns(row.messages))
    given.clear()
    assert not [row for row in encoder.conversations(rows) if isinstance(row, ValueError)]
    assert 0.1 * whole < sum(map(len, given)) < at_most * whole


def test_the_error_of_a_row_is_its_own() -> None:
    tokenizer = tokenizer_of("byte level", "gemma")
    found = proved_encoder(tokenizer, SpecialTokens.token).conversations(
        [Conversation(chat("a", "No")), Conversation(REFUSED), Conversation(chat("b", "No"))]
    )
    assert [isinstance(row, ValueError) for row in found] == [False, True, False]
    assert "the chat template refuses the messages" in str(found[1])


class Greeting(PreTrainedTokenizerFast):
    """Writes the answer to a greeting otherwise, which no piece of the text shows."""

    def _encode_plus(self, text: str | list[str], **options: object) -> BatchEncoding:
        texts = [text] if isinstance(text, str) else text
        texts = [t.replace("Answer", "yes") if "user\nHello" in t else t for t in texts]
        return super()._encode_plus(texts[0] if isinstance(text, str) else texts, **options)


def test_a_tokenizer_with_code_of_its_own_reads_every_text_in_one_piece() -> None:
    plain, written = tokenizer_of("byte level", "chatml"), "<|im_start|>user\na<|im_end|>"
    assert len(proved_encoder(plain, SpecialTokens.token).pieces(written)) == 2
    tokenizer = Greeting(tokenizer_object=plain.backend_tokenizer, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = plain.chat_template
    encoder = proved_encoder(tokenizer, SpecialTokens.token)
    assert encoder.pieces(written) == [written]
    rows = [Conversation(messages) for messages in CHATS.values()]
    assert encoder.conversations(rows) == [ChatEncoder(tokenizer).conversation(row.messages) for row in rows]
