"""Files as people have them: each is read whole, or refused with what to do."""

from pathlib import Path

import pytest

from paft.config import BadRows, FileSource
from paft.data.sources import conversations, holds_pairs, preference_pairs, unpaired_rows

SHARED = Path(__file__).resolve().parents[1] / "../shared/data"
SAMPLES = SHARED / "open_llm"

pytestmark = pytest.mark.skipif(not SAMPLES.is_dir(), reason="development data is absent")

CONVERSATIONS = {
    "sft_samples/alpaca_en_demo.json": (999, "alpaca (instruction, input, output)"),
    "sft_samples/identity.json": (91, "alpaca (instruction, input, output)"),
    "sft_samples/glaive_toolcall_en_demo.json": (300, "sharegpt (conversations, tools)"),
    "sft_samples/sharegpt_dummy_conversation.json": (500, "sharegpt (conversations)"),
    "sft_samples/v1_sft_demo.jsonl": (500, "messages (messages)"),
}
# rows, bad ones (an answer is empty, or both are the same), and what the file is taken for
PAIRS = {
    "preference_samples/dpo_en_demo.json": (300, 0, "sharegpt (conversations, chosen, rejected)"),
    "preference_samples/hh_harmless_original_format_300.jsonl": (300, 0, "hh (chosen, rejected)"),
    "preference_samples/ultrafeedback_train_1000.jsonl": (994, 6, "preference (prompt, chosen, rejected)"),
    "preference_samples/ultrafeedback_eval_200.jsonl": (199, 1, "preference (prompt, chosen, rejected)"),
    "preference_samples/v1_dpo_demo.jsonl": (10, 0, "chosen_messages (chosen_messages, rejected_messages)"),
}
UNPAIRED = {"preference_samples/kto_en_demo.json": (300, "messages (messages, label)")}
REFUSED = {
    "sft_samples/dataset_info.json": "must hold a list of rows",
    "sft_samples/ultra_eval.json": r"row 1: format=auto finds no conversations in the columns \['class', 'data'\]",
    "sft_samples/self_instruct_seed_tasks.jsonl": r"row 1: .*instances holds rows of its own \(input, output\)",
}


def source(name: str, bad_rows: BadRows = BadRows.error) -> FileSource:
    return FileSource(path=str(SAMPLES / name), bad_rows=bad_rows)


def test_every_file_of_both_folders_is_tried() -> None:
    files = {str(path.relative_to(SAMPLES)) for path in SAMPLES.glob("*_samples/*")}
    assert files == {*CONVERSATIONS, *PAIRS, *UNPAIRED, *REFUSED}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversations_are_read(name: str) -> None:
    rows = conversations(source(name), "train")
    assert (len(rows), rows.read_as) == CONVERSATIONS[name]
    assert len(list(rows)) == len(rows)


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_are_read(name: str) -> None:
    rows = preference_pairs(source(name, BadRows.drop), "train")
    assert (len(rows), rows.num_bad, rows.read_as) == PAIRS[name]


@pytest.mark.parametrize("name", UNPAIRED)
def test_judged_answers_are_read_and_are_no_pairs(name: str) -> None:
    rows = unpaired_rows(source(name), "train")
    assert (len(rows), rows.read_as) == UNPAIRED[name]
    assert {row.label for _, row in rows} == {True, False}
    with pytest.raises(ValueError, match=r"row 1: .*one answer a row with a judgement of it"):
        preference_pairs(source(name), "train")
    assert not holds_pairs(source(name))


@pytest.mark.parametrize("name", PAIRS)
def test_files_of_pairs_are_told_from_those_of_judged_answers(name: str) -> None:
    assert holds_pairs(source(name, BadRows.drop))


@pytest.mark.parametrize("name", REFUSED)
def test_other_files_are_refused_with_what_to_do(name: str) -> None:
    for read in (conversations, preference_pairs):
        with pytest.raises(ValueError) as caught:
            read(source(name), "train")
        assert name in str(caught.value)
    with pytest.raises(ValueError, match=REFUSED[name]):
        conversations(source(name), "train")
