"""Tokens and labels of rows with tools and several answers, against those TRL prepares with `assistant_only_loss`.

TRL's mask is transformers' own: what a template marks with {% generation %}. `qwen_tools` marks an answer as it is
learnt here, from its first token to its end of turn. TRL's template for Qwen2.5 marks the line feeds around it too,
the first of which generation is given; the last test pins that this is all that differs.
"""

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from chat_tokenizers import tokenizer_of
from datasets import Dataset
from tiny import MODEL
from transformers import PreTrainedTokenizerFast

from paft.chat.conversation import Conversation
from paft.chat.encode import encode_conversation
from paft.chat.proof import prove_template
from paft.chat.tokens import IGNORE, Encoded
from paft.config import RowFormat
from paft.data.rows import conversation_format, parse_conversation
from paft.model.base import base_folder
from paft.proof.base import load_base

trl = pytest.importorskip("trl")

WEATHER = {"name": "weather", "description": "Weather of a place.", "parameters": {"type": "object"}}
CALL = {"name": "weather", "arguments": {"place": "東京", "days": 2}}
ASKED = {"from": "human", "value": "Is it cold?"}
CALLED = [
    ASKED,
    {"from": "function_call", "value": json.dumps(CALL)},
    {"from": "observation", "value": '{"t": 12}'},
    {"from": "gpt", "value": "It is 12 degrees."},
]
TWO_CALLS = [
    ASKED,
    {"from": "function_call", "value": json.dumps([CALL, CALL])},
    {"from": "observation", "value": "12"},
    {"from": "observation", "value": "13"},
    {"from": "gpt", "value": "About 12."},
]
PLAIN = [
    {"from": "human", "value": "Hello"},
    {"from": "gpt", "value": "Hello, yes?"},
    {"from": "human", "value": "what is 12 + 30?"},
    {"from": "gpt", "value": "42"},
]
ROWS: dict[str, dict[str, Any]] = {
    "answers": {"conversations": PLAIN},
    "answers beside tools": {"conversations": PLAIN, "tools": [WEATHER]},
    "call": {"conversations": CALLED, "tools": json.dumps([WEATHER]), "system": "Be brief."},
    "call and answers": {"conversations": [*CALLED, *PLAIN], "tools": [WEATHER]},
    "two calls": {"conversations": TWO_CALLS, "tools": [WEATHER]},
    "call alone": {"conversations": CALLED[:2], "tools": [WEATHER]},
    "words beside a call": {
        "messages": [
            {"role": "user", "content": "Is it cold?"},
            {"role": "assistant", "content": "One moment.", "tool_calls": [CALL], "reasoning": "Ask."},
        ],
        "tools": [WEATHER],
    },
}


def conversation(name: str) -> Conversation:
    return parse_conversation(ROWS[name], conversation_format(ROWS[name], RowFormat.auto))


def ours(tokenizer: PreTrainedTokenizerFast, row: Conversation) -> Encoded:
    return encode_conversation(tokenizer, row.messages, tools=row.tools)


def prepared_by_trl(
    tokenizer: PreTrainedTokenizerFast, row: Conversation, out: Path
) -> tuple[list[int], list[int]]:
    columns = {"messages": row.messages} | ({"tools": json.dumps(row.tools)} if row.tools else {})
    trainer = trl.SFTTrainer(
        load_base(base_folder(MODEL), MODEL),
        trl.SFTConfig(
            output_dir=str(out), assistant_only_loss=True, max_length=None, use_cpu=True, bf16=False,
            report_to="none", disable_tqdm=True, gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_list([columns]),
        processing_class=tokenizer,
    )  # fmt: skip
    [prepared] = trainer.train_dataset
    return prepared["input_ids"], prepared["labels"]


def learnt(tokenizer: PreTrainedTokenizerFast, labels: list[int]) -> list[str]:
    """Each stretch that is learnt, as text."""
    stretches = (
        list(group) for is_learnt, group in groupby(labels, lambda label: label != IGNORE) if is_learnt
    )
    return [tokenizer.decode(stretch) for stretch in stretches]


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("kind", ["byte level", "sentencepiece legacy"])
def test_tokens_and_labels_are_trls(kind: str, name: str, tmp_path: Path) -> None:
    tokenizer, row = tokenizer_of(kind, "qwen_tools"), conversation(name)
    prove_template(tokenizer)
    encoded = ours(tokenizer, row)
    input_ids, labels = prepared_by_trl(tokenizer, row, tmp_path)
    behind = len(input_ids) - len(encoded.input_ids)
    assert encoded.input_ids == input_ids[: len(encoded.input_ids)]
    assert encoded.labels == labels[: len(encoded.labels)]
    assert (
        labels[len(encoded.labels) :] == [IGNORE] * behind
        and tokenizer.decode(input_ids[-behind:]).strip() == ""
    )


def test_calls_are_learnt_and_results_are_not() -> None:
    tokenizer, row = tokenizer_of("byte level", "qwen_tools"), conversation("call and answers")
    call = '<tool_call>\n{"name": "weather", "arguments": {"place": "東京", "days": 2}}\n</tool_call>'
    answers = [call, "It is 12 degrees.", "Hello, yes?", "42"]
    assert learnt(tokenizer, ours(tokenizer, row).labels) == [f"{answer}<|im_end|>" for answer in answers]


@pytest.mark.parametrize("name", ["call", "two calls", "answers"])
def test_trls_template_for_qwen_marks_line_feeds_besides(name: str, tmp_path: Path) -> None:
    tokenizer, row = tokenizer_of("byte level", "qwen_tools"), conversation(name)
    folder = Path(trl.__file__).parent / "chat_templates"
    tokenizer.chat_template = (folder / "qwen2_5_training.jinja").read_text(encoding="utf-8")
    _, labels = prepared_by_trl(tokenizer, row, tmp_path)
    tokenizer.chat_template = (folder / "qwen2_5.jinja").read_text(encoding="utf-8")
    encoded = ours(tokenizer, row)
    line_feed = tokenizer.convert_tokens_to_ids("Ċ")
    differ = [pair for pair in zip(encoded.labels, labels, strict=False) if pair[0] != pair[1]]
    assert differ and set(differ) == {(IGNORE, line_feed)}
