"""Tokens without an embedding are named before training, and rows are within the positions of the model."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import train
from tiny import MODEL
from transformers import AutoTokenizer

from paft.chat.limits import max_positions, within
from paft.config import DemoSource, FileSource, Skill, Template, TooLong
from paft.data.prepare import prepare_preference, prepare_sft
from paft.data.tokens import read_sft
from paft.model.base import base_folder, load_tokenizer


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A copy of the tiny model, whose 259 tokens all have an embedding and which has 2048 positions."""
    return Path(shutil.copytree(base_folder(MODEL), tmp_path / "base"))


def configure(base: Path, **settings: Any) -> Path:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | settings))
    return base


def add_token(base: Path) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(base)
    return base


@pytest.mark.parametrize("nested", [False, True])
def test_a_token_without_an_embedding_is_named(base: Path, nested: bool) -> None:
    add_token(base)
    if nested:
        configure(base, vocab_size=999, text_config={"vocab_size": 259})
    with pytest.raises(
        ValueError, match=r"'<new>' of id 259, but .* 259 rows .*resize_token_embeddings\(260\)"
    ):
        load_tokenizer(base, Template.chatml)


def test_a_tokenizer_without_an_eos_is_named(base: Path) -> None:
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": None}))
    with pytest.raises(ValueError, match="names no EOS; set eos_token"):
        load_tokenizer(base, Template.chatml)


def test_a_larger_embedding_is_right(base: Path) -> None:
    assert len(load_tokenizer(configure(base, vocab_size=320), Template.chatml)) == 259


def test_a_run_with_such_a_base_ends_in_words_before_training(base: Path, tmp_path: Path) -> None:
    add_token(base)
    done = train(
        "experiment=smoke",
        "model=local",
        f"model.path={base}",
        "model.name=mine",
        f"logs={tmp_path}/logs",
        cwd=tmp_path,
    )
    assert done.returncode == 2 and "'<new>' of id 259" in done.stderr and "Traceback" not in done.stderr
    assert not list((tmp_path / "logs/stages").glob("sft/*/stage.json"))


@pytest.mark.parametrize(
    ("settings", "positions"),
    [
        ({}, 2048),
        ({"max_position_embeddings": 512}, 512),
        ({"max_position_embeddings": None, "n_positions": 1024}, 1024),
        ({"max_position_embeddings": None, "text_config": {"max_position_embeddings": 300}}, 300),
        ({"max_position_embeddings": None}, None),
        ({"max_position_embeddings": -1}, None),
    ],
)
def test_positions_of_a_model(base: Path, settings: dict[str, Any], positions: int | None) -> None:
    assert max_positions(configure(base, **settings)) == positions


def test_longer_rows_lose_their_oldest_tokens_and_are_counted(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = load_tokenizer(base, Template.chatml)
    source = DemoSource(skill=Skill.tool_call, num_rows=12, max_length=1024)
    whole = prepare_sft(source, tokenizer, tmp_path / "whole")["train"]
    with caplog.at_level(logging.WARNING):
        counts = prepare_sft(source, tokenizer, tmp_path / "cut", positions=100)["train"]
    assert whole["longest"] > 100 >= counts["longest"] and counts["rows"] == whole["rows"]
    assert (
        counts["truncated_prompts"] == sum(n > 100 for n in read_sft(tmp_path / "whole", "train").lengths) > 0
    )
    assert "max_length=1024 is more than the 100 positions of the model" in caplog.text


def test_answers_longer_than_the_positions_are_what_too_long_says(base: Path, tmp_path: Path) -> None:
    tokenizer, path = load_tokenizer(base, Template.chatml), tmp_path / "rows.jsonl"
    rows = [{"prompt": "Q", "chosen": "a" * length, "rejected": "No"} for length in (5, 80)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=r"row 2: field 'chosen' has 81 tokens.*max_length=64"):
        prepare_preference(FileSource(path=str(path)), tokenizer, tmp_path, positions=64)
    drop = FileSource(path=str(path), too_long=TooLong.drop)
    assert prepare_preference(drop, tokenizer, tmp_path, positions=64)["train"]["dropped"] == 1


def test_a_source_within_the_positions_is_as_it_is() -> None:
    source = DemoSource(skill=Skill.tool_call)
    assert within(source, None) is source and within(source, 1024) is source
    assert (within(source, 256).max_length, within(source, 256).max_prompt_length) == (256, 255)


@pytest.mark.parametrize(
    ("settings", "positions"),
    [
        ({"model_type": "opt"}, 2048),  # what the architecture takes for granted
        ({"model_type": "whisper", "max_target_positions": 448}, 448),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "bloom"}, None),
        ({"model_type": "brought", "max_position_embeddings": 77}, 77),
    ],
)
def test_positions_are_those_of_the_architecture(
    settings: dict[str, Any], positions: int | None, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert max_positions(tmp_path) == positions
