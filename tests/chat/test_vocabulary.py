"""Tokenizers of adapters that do not mean what the base's means are refused, with the tokens named."""

from pathlib import Path

import pytest
from small_bases import small_base

from paft.chat.vocabulary import refuse_other_vocabulary
from paft.model.base import byte_tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vocabulary") / "base"
    small_base(folder, "llama", vocab_size=261)  # two rows more than there are tokens
    return folder


def tokenizer(folder: Path, *added: str) -> Path:
    made = byte_tokenizer()
    made.add_special_tokens({"additional_special_tokens": list(added)})
    made.save_pretrained(folder)
    return folder


def test_tokens_beyond_the_embedding_are_named(base: Path, tmp_path: Path) -> None:
    sft = tokenizer(tmp_path / "sft", "<a>", "<b>", "<c>", "<d>")
    with pytest.raises(ValueError) as error:
        refuse_other_vocabulary(base, {"sft": sft})
    said = str(error.value)
    assert f"the sft adapter {sft} has a larger vocabulary" in said
    assert "2 tokens have ids from 261 on" in said and "'<c>' 261, '<d>' 262" in said
    assert "resize_token_embeddings(263)" in said


def test_one_id_with_two_meanings_is_named(base: Path, tmp_path: Path) -> None:
    adapters = {
        "sft": tokenizer(tmp_path / "sft", "<a>"),
        "preference": tokenizer(tmp_path / "preference", "<b>"),
    }
    with pytest.raises(
        ValueError, match="different tokenizers: 1 tokens are not alike, as 259 is '<a>' and '<b>'"
    ):
        refuse_other_vocabulary(base, adapters)


def test_added_tokens_that_fit_and_adapters_without_a_tokenizer_pass(base: Path, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    refuse_other_vocabulary(
        base, {"sft": tokenizer(tmp_path / "sft", "<a>"), "preference": tmp_path / "bare"}
    )
    refuse_other_vocabulary(base, {})
