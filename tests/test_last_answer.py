"""Rows of which the last answer alone is learnt, in templates that drop the thoughts of earlier turns."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from chat_tokenizers import tokenizer_of
from transformers import PreTrainedTokenizerFast

from paft.chat.tokens import IGNORE
from paft.config import Answers, FileSource
from paft.data.prepare import prepare_sft

THINKING = """
{%- set last = namespace(user=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set last.user = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\n' }}
{%- if m.role == 'assistant' and loop.index0 > last.user %}
{{- '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}
{%- endif %}
{{- m.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}
"""
"""Thoughts stand behind the last question only, as in Qwen3's template."""
ROW = {
    "messages": [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "four", "reasoning_content": "it is 2 twice"},
        {"role": "user", "content": "And 3 + 3?"},
        {"role": "assistant", "content": "six", "reasoning_content": "it is 3 twice"},
    ]
}


@pytest.fixture
def thinking() -> PreTrainedTokenizerFast:
    tokenizer = tokenizer_of("byte level", "chatml")
    tokenizer.chat_template = THINKING
    return tokenizer


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "a.jsonl").write_text(json.dumps(ROW))
    return str(tmp_path / "a.jsonl")


def prepared(source: FileSource, tokenizer: PreTrainedTokenizerFast, out: Path) -> list[dict[str, Any]]:
    prepare_sft(source, tokenizer, out)
    rows: list[dict[str, Any]] = pq.read_table(out / "train.parquet").to_pylist()
    return rows


def test_last_answer_alone_against_apply_chat_template(tmp_path, path, thinking) -> None:
    [row] = prepared(FileSource(path=path, answers=Answers.last), thinking, tmp_path)
    *asked, answer = ROW["messages"]
    prompt = thinking.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    whole = thinking.apply_chat_template([*asked, answer], return_dict=False)
    learnt = whole[len(prompt) : len(row["input_ids"])]
    assert row["input_ids"] == prompt + learnt
    assert row["labels"] == [IGNORE] * len(prompt) + learnt
    assert thinking.decode(learnt) == "<think>\nit is 3 twice\n</think>\n\nsix<|im_end|>"
    assert "2 twice" not in thinking.decode(row["input_ids"])


def test_every_answer_of_such_a_template_is_refused_with_the_way_out(tmp_path, path, thinking) -> None:
    with pytest.raises(ValueError, match=r"row 1: .*rewrites earlier turns.*Set data\.sft\.answers=last, "):
        prepare_sft(FileSource(path=path), thinking, tmp_path)


def test_thoughts_that_are_learnt_must_still_be_written(tmp_path, path) -> None:
    plain = tokenizer_of("byte level", "chatml")
    with pytest.raises(ValueError, match="does not write what an answer has as reasoning, 'it is 3 twice'"):
        prepare_sft(FileSource(path=path, answers=Answers.last), plain, tmp_path)


def test_last_answer_has_the_tokens_of_all_and_fewer_labels(tmp_path, path) -> None:
    turns = [{"role": m["role"], "content": m["content"]} for m in ROW["messages"]]
    Path(path).write_text(json.dumps({"messages": turns}))
    tokenizer = tokenizer_of("byte level", "chatml")
    [every], [last] = (
        prepared(FileSource(path=path, answers=answers), tokenizer, tmp_path) for answers in Answers
    )
    assert last["input_ids"] == every["input_ids"]
    said = [label for label in last["labels"] if label != IGNORE]
    assert tokenizer.decode(said) == "six<|im_end|>"
    assert [label for label in every["labels"] if label != IGNORE][-len(said) :] == said


def test_pairs_have_no_other_answers(compose) -> None:
    with pytest.raises(
        ValueError, match=r"data.preference.answers must be left out: of a pair the last answers are"
    ):
        compose("data=jsonl", "data.sft.path=a", "data.preference.path=b", "data.preference.answers=last")
