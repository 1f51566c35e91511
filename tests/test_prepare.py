"""Whole sources to Parquet files of tokens, and back."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from paft.chat.encode import encode_conversation, encode_pair
from paft.chat.template import template_text
from paft.chat.tokens import IGNORE, Encoded
from paft.config import (
    BadRows,
    DemoSource,
    FileSource,
    RowFormat,
    Skill,
    Source,
    SpecialTokens,
    Template,
    TooLong,
)
from paft.data.held_out import read_held_out
from paft.data.prepare import prepare_preference, prepare_sft
from paft.data.sources import conversations, preference_pairs
from paft.data.tokens import read_preference, read_sft
from paft.graph.stage import canonical

SHARED = Path(__file__).resolve().parents[1] / "../shared/data"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte; ChatML. A turn costs the marks and `user\\n` or `assistant\\n` beside its text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({byte: at for at, byte in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(token, special=True) for token in ("<|im_start|>", "<|im_end|>")])
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>")
    fast.chat_template = template_text(Template.chatml, fast)
    return fast


def jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def questions(path: Path, *answer_lengths: int) -> str:
    return jsonl(path, [{"question": "Q?", "answer": "a" * length} for length in answer_lengths])


def test_sft_rows_come_back_as_they_were_encoded(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    source = DemoSource(skill=Skill.tool_call, num_rows=12)
    counts = prepare_sft(source, tokenizer, tmp_path)
    for split in ("train", "validation"):
        expected = [encode_conversation(tokenizer, row.messages) for _, row in conversations(source, split)]
        rows = read_sft(tmp_path, split)
        assert [rows[at] for at in range(len(rows))] == expected
        np.testing.assert_array_equal(rows.lengths, [len(row.input_ids) for row in expected])
        assert counts[split] == {
            "rows": len(expected),
            "tokens": sum(len(row.input_ids) for row in expected),
            "label_tokens": sum(label != IGNORE for row in expected for label in row.labels),
            "bad_rows": 0,
            "dropped": 0,
            "truncated_prompts": 0,
            "truncated_answers": 0,
            "longest": max(len(row.input_ids) for row in expected),
        }


def test_preference_rows_come_back_as_they_were_encoded(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    source = DemoSource(skill=Skill.honesty, num_rows=12)
    counts = prepare_preference(source, tokenizer, tmp_path)
    expected = [encode_pair(tokenizer, row) for _, row in preference_pairs(source, "train")]
    rows = read_preference(tmp_path, "train")
    assert [rows[at] for at in range(len(rows))] == expected
    longest = [len(row.prompt_ids) + max(len(row.chosen_ids), len(row.rejected_ids)) for row in expected]
    np.testing.assert_array_equal(rows.lengths, longest)
    answers = sum(len(row.chosen_ids) + len(row.rejected_ids) for row in expected)
    assert counts["train"]["label_tokens"] == answers
    assert counts["train"]["tokens"] == answers + 2 * sum(len(row.prompt_ids) for row in expected)
    assert counts["train"]["longest"] == max(longest)


def test_columns_are_lists_of_int32(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    prepare_sft(DemoSource(skill=Skill.tool_call, num_rows=6), tokenizer, tmp_path / "sft")
    prepare_preference(DemoSource(skill=Skill.honesty, num_rows=6), tokenizer, tmp_path / "preference")
    for stage, names in (
        ("sft", ["input_ids", "labels"]),
        ("preference", ["prompt_ids", "chosen_ids", "rejected_ids"]),
    ):
        schema = pq.read_schema(tmp_path / stage / "train.parquet")
        assert schema.names == names
        assert {str(field.type.value_type) for field in schema} == {"int32"}


def test_answer_too_long_is_an_error_with_file_row_field_and_size(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = questions(tmp_path / "q.jsonl", 3, 49, 50, 3, 70)
    with pytest.raises(ValueError) as caught:
        prepare_sft(FileSource(path=path, max_length=50, max_prompt_length=30), tokenizer, tmp_path / "out")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("3 row(s)")
    assert lines[1].startswith(f"{path}, row 2: field 'answer' has 50 tokens") and "max_length=50" in lines[1]
    assert [line.split(": ")[0][-5:] for line in lines[1:]] == ["row 2", "row 3", "row 5"]


def test_answer_too_long_can_be_dropped(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = questions(tmp_path / "q.jsonl", 3, 70, 4)
    source = FileSource(path=path, max_length=50, max_prompt_length=30, too_long=TooLong.drop)
    counts = prepare_sft(source, tokenizer, tmp_path)["train"]
    assert (counts["rows"], counts["dropped"]) == (2, 1)
    assert [len(read_sft(tmp_path, "train")[at].input_ids) for at in (0, 1)] == [25, 26]


def test_answer_too_long_can_be_truncated(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = questions(tmp_path / "q.jsonl", 3, 70)
    source = FileSource(path=path, max_length=50, max_prompt_length=10, too_long=TooLong.truncate)
    counts = prepare_sft(source, tokenizer, tmp_path)["train"]
    row = read_sft(tmp_path, "train")[1]
    assert (counts["rows"], counts["truncated_prompts"], counts["truncated_answers"]) == (2, 1, 1)
    assert len(row.input_ids) == 50 and row.labels == [IGNORE] * 10 + row.input_ids[10:]
    assert tokenizer.decode(row.input_ids) == "assistant\n" + "a" * 40


def test_long_preference_prompt_is_cut_to_its_newest_tokens(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = jsonl(tmp_path / "p.jsonl", [{"prompt": "x" * 90 + "end", "chosen": "yes", "rejected": "no"}])
    source = FileSource(path=path, max_length=40, max_prompt_length=20)
    counts = prepare_preference(source, tokenizer, tmp_path)["train"]
    row = read_preference(tmp_path, "train")[0]
    assert counts["truncated_prompts"] == 1 and counts["truncated_answers"] == 0
    assert len(row.prompt_ids) == 20
    assert tokenizer.decode(row.prompt_ids) == "xxxxend<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(row.chosen_ids) == "yes<|im_end|>"


def test_nothing_left_after_dropping_is_an_error(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = questions(tmp_path / "q.jsonl", 70, 80)
    source = FileSource(path=path, max_length=50, max_prompt_length=30, too_long=TooLong.drop)
    with pytest.raises(ValueError, match=r"no row is left.*all 2 rows exceed max_length=50"):
        prepare_sft(source, tokenizer, tmp_path)


def test_template_fault_names_the_row(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    system = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    rows = [{"messages": [*system[start:], {"role": "assistant", "content": "a"}]} for start in (1, 0)]
    path = jsonl(tmp_path / "m.jsonl", rows)
    refusing = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|im_end|>")
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    refusing.chat_template = refusal + str(tokenizer.chat_template)
    with pytest.raises(ValueError, match=r"m.jsonl, row 2: the chat template refuses .*no system"):
        prepare_sft(FileSource(path=path, format=RowFormat.messages), refusing, tmp_path / "out")
    drop = FileSource(path=path, bad_rows=BadRows.drop)
    counts = prepare_sft(drop, refusing, tmp_path / "out")["train"]
    assert (counts["rows"], counts["bad_rows"]) == (1, 1)
    jsonl(tmp_path / "m.jsonl", rows[1:])
    with pytest.raises(ValueError, match=r"no row is left for train.parquet: all 1 are bad"):
        prepare_sft(drop, refusing, tmp_path / "out")


def test_special_tokens_in_text_are_what_the_source_says(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = jsonl(tmp_path / "q.jsonl", [{"question": "Why <|im_end|>?", "answer": "a"}])
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    counts = {}
    for choice in (SpecialTokens.token, SpecialTokens.text):
        prepare_sft(FileSource(path=path, special_tokens_in_text=choice), tokenizer, tmp_path / choice.value)
        counts[choice] = read_sft(tmp_path / choice.value, "train")[0].input_ids.count(end)
    assert counts == {SpecialTokens.token: 3, SpecialTokens.text: 2}
    with pytest.raises(ValueError, match=r"q.jsonl, row 1: a message holds the text '<\|im_end\|>'"):
        source = FileSource(path=path, special_tokens_in_text=SpecialTokens.error)
        prepare_sft(source, tokenizer, tmp_path / "error")


def test_special_tokens_in_text_are_part_of_a_key_only_where_they_are_set() -> None:
    assert "special_tokens_in_text" not in canonical(Source())
    text = canonical(Source(special_tokens_in_text=SpecialTokens.text))
    assert text["special_tokens_in_text"] == "text"


def test_a_template_is_proved_before_a_row_is_read(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    headless = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|im_end|>")
    headless.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    for prepare in (prepare_sft, prepare_preference):
        with pytest.raises(ValueError, match="ends a turn with nothing"):
            prepare(FileSource(path=str(tmp_path / "none.jsonl")), headless, tmp_path)


def test_a_split_that_was_not_prepared_is_named(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    prepare_sft(FileSource(path=questions(tmp_path / "q.jsonl", 3)), tokenizer, tmp_path / "out")
    with pytest.raises(ValueError, match=r"no validation rows; it has \['train'\]"):
        read_sft(tmp_path / "out", "validation")


def test_local_validation_file_is_prepared_too(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path, held_out = questions(tmp_path / "q.jsonl", 3, 4), questions(tmp_path / "v.jsonl", 5)
    counts = prepare_sft(FileSource(path=path, validation_path=held_out), tokenizer, tmp_path)
    assert {split: part["rows"] for split, part in counts.items()} == {"train": 2, "validation": 1}


@pytest.mark.skipif(not SHARED.is_dir(), reason="development data is absent")
def test_development_data_tokenises_completely(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """By the byte tokenizer, whose rows are about four times as long as a model's."""
    limits = {"max_length": 8192, "max_prompt_length": 6000}
    gsm8k = FileSource(path=str(SHARED / "gsm8k_train.jsonl"), **limits)
    harmless = FileSource(path=str(SHARED / "hh_harmless_train.jsonl"), **limits)
    assert prepare_sft(gsm8k, tokenizer, tmp_path / "sft")["train"]["rows"] == 7473
    assert prepare_preference(harmless, tokenizer, tmp_path / "preference")["train"]["rows"] == 1803


def turns(*answers: dict) -> dict:
    """A conversation with these answers."""
    said = ({"role": "user", "content": f"Q{at}"} for at in range(len(answers)))
    return {
        "messages": [
            m
            for user, answer in zip(said, answers, strict=True)
            for m in (user, {"role": "assistant"} | answer)
        ]
    }


def learnt(row: Encoded, tokenizer: PreTrainedTokenizerFast) -> str:
    return tokenizer.decode([label for label in row.labels if label != IGNORE])


@pytest.mark.parametrize("flag", [{"weight": 0}, {"train": False}, {"loss": False}, {"loss_weight": 0.0}])
def test_an_answer_that_is_not_to_be_learnt_is_read_but_not_learnt(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, flag: dict
) -> None:
    wrong, right = {"content": "WRONG ANSWER"}, {"content": "right"}
    rows = [turns(wrong | flag, right), turns(right, wrong | flag), turns(wrong, right)]
    prepare_sft(FileSource(path=jsonl(tmp_path / "w.jsonl", rows)), tokenizer, tmp_path)
    first, cut, plain = (read_sft(tmp_path, "train")[at] for at in range(3))
    assert first.input_ids == plain.input_ids
    assert learnt(first, tokenizer) == learnt(cut, tokenizer) == "right<|im_end|>"
    assert learnt(plain, tokenizer) == "WRONG ANSWER<|im_end|>right<|im_end|>"
    assert cut.labels[-1] != IGNORE and tokenizer.decode(cut.input_ids).endswith("right<|im_end|>")
    assert first.prompt_length == plain.prompt_length


def test_cutting_keeps_the_flags_where_they_belong(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = jsonl(tmp_path / "w.jsonl", [turns({"content": "bad" * 20, "weight": 0}, {"content": "good"})])
    prepare_sft(FileSource(path=path, max_length=60, max_prompt_length=30), tokenizer, tmp_path)
    row = read_sft(tmp_path, "train")[0]
    assert len(row.input_ids) == 60 and learnt(row, tokenizer) == "good<|im_end|>"


@pytest.mark.parametrize(
    "end", ["<|im_end|>", "<|im_end|>\n", "<|im_end|> \r\n\t", "<|im_end|>\n<|im_end|>\n"]
)
def test_an_end_marker_that_the_data_brings_does_not_stand_twice(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, end: str
) -> None:
    prepare_sft(
        FileSource(path=jsonl(tmp_path / "e.jsonl", [turns({"content": f"hi {end}"})])), tokenizer, tmp_path
    )
    assert learnt(read_sft(tmp_path, "train")[0], tokenizer) == "hi <|im_end|>"
    pairs = [{"prompt": f"Q{end}", "chosen": f"yes{end}", "rejected": "no"}]
    prepare_preference(FileSource(path=jsonl(tmp_path / "p.jsonl", pairs)), tokenizer, tmp_path)
    pair = read_preference(tmp_path, "train")[0]
    assert tokenizer.decode(pair.prompt_ids) == "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(pair.chosen_ids) == "yes<|im_end|>"


SAME = [("yes", "yes<|im_end|>"), ("yes<|im_end|>\n", "yes<|im_end|>"), ("y" * 60 + "a", "y" * 60 + "b")]


@pytest.mark.parametrize(("chosen", "rejected"), SAME, ids=["marker", "line_break", "cut"])
def test_answers_of_equal_tokens_are_a_bad_row(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, chosen: str, rejected: str
) -> None:
    rows = [{"prompt": "Q", "chosen": c, "rejected": r} for c, r in [("yes", "no"), (chosen, rejected)]]
    limits = {"max_length": 50, "max_prompt_length": 20, "too_long": TooLong.truncate}
    source = FileSource(path=jsonl(tmp_path / "p.jsonl", rows), **limits)
    with pytest.raises(
        ValueError, match=r"(?s)1 row\(s\).*p.jsonl, row 2: fields 'chosen' and 'rejected' have the same"
    ):
        prepare_preference(source, tokenizer, tmp_path)
    source.bad_rows = BadRows.drop
    counts = prepare_preference(source, tokenizer, tmp_path)["train"]
    assert (counts["rows"], counts["bad_rows"], len(read_preference(tmp_path, "train"))) == (1, 1, 1)


def test_a_message_of_nothing_but_an_end_marker_is_a_bad_row(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [turns({"content": "hi"}), turns({"content": "<|im_end|>\n"}, {"content": "hi"})]
    source = FileSource(path=jsonl(tmp_path / "e.jsonl", rows))
    with pytest.raises(
        ValueError, match=r"(?s)e.jsonl, row 2: a message of role 'assistant' says nothing but"
    ):
        prepare_sft(source, tokenizer, tmp_path)
    source.bad_rows = BadRows.drop
    assert prepare_sft(source, tokenizer, tmp_path)["train"]["bad_rows"] == 1
    source.path = jsonl(tmp_path / "all.jsonl", rows[1:])
    with pytest.raises(
        ValueError, match=r"no row is left for train.parquet: all 1 are bad; set bad_rows=error"
    ):
        prepare_sft(source, tokenizer, tmp_path)


def test_held_out_rows_have_no_end_marker_of_their_own(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [{"prompt": f"Q{at}", "chosen": "yes<|im_end|>\n", "rejected": "no"} for at in range(4)]
    source = FileSource(path=jsonl(tmp_path / "p.jsonl", rows), held_out=2)
    prepare_preference(source, tokenizer, tmp_path)
    assert [row["chosen"][0]["content"] for row in read_held_out(tmp_path)] == ["yes", "yes"]
    path = jsonl(tmp_path / "s.jsonl", [row | {"rejected": "yes"} for row in rows])
    with pytest.raises(ValueError, match=r"2 row\(s\) cannot be used"):
        prepare_preference(FileSource(path=path, held_out=2), tokenizer, tmp_path)


def test_fields_that_are_not_used_are_said_once_and_counted(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"question": "Q", "answer": "A", "id": at, "source": "web" if at else None} for at in range(3)]
    with caplog.at_level("INFO", "paft"):
        counts = prepare_sft(FileSource(path=jsonl(tmp_path / "q.jsonl", rows)), tokenizer, tmp_path)
    assert counts["train"]["ignored"] == {"id": 3, "source": 2}
    file = f"train of {tmp_path / 'q.jsonl'}"
    assert caplog.messages == [
        f"{file}: 3 rows read as gsm8k (question, answer)",
        f"{file}: ignored: id, source",
    ]
    assert counts["train"]["read_as"] == "gsm8k (question, answer)"


def test_rows_called_bad_can_be_left_out(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"prompt": f"Q{at}", "completion": "A", "label": at % 2 == 0} for at in range(6)]
    source = FileSource(path=jsonl(tmp_path / "k.jsonl", rows))
    with pytest.raises(ValueError, match=r"(?s)3 row\(s\).*bad_rows=drop.*row 2: field 'label' is False"):
        prepare_sft(source, tokenizer, tmp_path)
    source.bad_rows = BadRows.drop
    with caplog.at_level("INFO", "paft"):
        counts = prepare_sft(source, tokenizer, tmp_path)["train"]
    assert (counts["rows"], counts["bad_rows"]) == (3, 3) and "ignored" not in counts
    assert caplog.messages[1:] == [f"train of {tmp_path / 'k.jsonl'}: left out: 3 bad rows, 0 too long"]
