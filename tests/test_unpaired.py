"""Single answers with a judgement: their data stage, their logs, and the objectives that learn from them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from conftest import train
from tiny import BRANCHES, PAD, judged, make, move, pairs, run, whole_batch

from paft.chat.encode import encode_pair
from paft.chat.template import template_text
from paft.chat.tokens import IGNORE, EncodedAnswer
from paft.command.pipeline import context_of
from paft.config import DemoSource, FileSource, RowFormat, Skill, Template, TooLong
from paft.data.held_out import read_held_out
from paft.data.prepare import prepare_preference, prepare_unpaired
from paft.data.sources import preference_pairs
from paft.data.tokens import read_preference
from paft.data.unpaired import mismatched, split_pairs
from paft.graph.build import build
from paft.model.base import byte_tokenizer
from paft.objectives import OBJECTIVES
from paft.store.store import Store
from paft.training.reference import FILE, ScoredAnswer, as_pair, score_pairs, scored
from paft.training.statistics import chosen_text


def jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def answers(path: Path, *labels: object) -> str:
    rows = [
        {"prompt": f"Q{i}?", "completion": "a" * (i + 1), "label": label} for i, label in enumerate(labels)
    ]
    return jsonl(path, rows)


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template_text(Template.chatml, tokenizer)
    return tokenizer


def read(folder: Path) -> list[EncodedAnswer]:
    rows = read_preference(folder, "train")
    return [rows[i] for i in range(len(rows))]


# --- the data stage --------------------------------------------------------------------------------------


def test_rows_have_the_tokens_of_pairs_and_the_answer_of_the_next_row(tmp_path, tokenizer):
    labels = [True, 0, "false", 1]
    counts = prepare_unpaired(FileSource(path=answers(tmp_path / "a.jsonl", *labels)), tokenizer, tmp_path)
    twice = [{"prompt": f"Q{i}?", "chosen": "a" * (i + 1), "rejected": "b"} for i in range(4)]
    path = jsonl(tmp_path / "p.jsonl", twice)
    expected = [encode_pair(tokenizer, p) for _, p in preference_pairs(FileSource(path=path), "train")]

    rows = read(tmp_path)

    assert [(r.prompt_ids, r.answer_ids) for r in rows] == [(p.prompt_ids, p.chosen_ids) for p in expected]
    assert [r.label for r in rows] == [True, False, False, True]
    assert [r.mismatched_ids for r in rows] == [expected[(i + 1) % 4].chosen_ids for i in range(4)]
    assert counts["train"]["rows"] == 4 and "split_pairs" not in counts["train"]
    assert counts["train"]["read_as"] == "prompt_completion (prompt, completion, label)"
    assert counts["train"]["label_tokens"] == sum(len(r.answer_ids) for r in rows)
    assert counts["train"]["longest"] == max(r.row_tokens for r in rows)
    assert str(pq.read_schema(tmp_path / "train.parquet").field("label").type) == "bool"
    longest = [len(r.prompt_ids) + max(len(r.answer_ids), len(r.mismatched_ids)) for r in rows]
    np.testing.assert_array_equal(read_preference(tmp_path, "train").lengths, longest)


def test_each_pair_becomes_a_good_and_a_bad_answer(tmp_path, tokenizer, caplog):
    source = DemoSource(skill=Skill.honesty, num_rows=12)
    with caplog.at_level("INFO", logger="paft"):
        counts = prepare_unpaired(source, tokenizer, tmp_path / "answers")
    whole = prepare_preference(source, tokenizer, tmp_path / "pairs")
    both = read_preference(tmp_path / "pairs", "train")
    expected = [(p.prompt_ids, a, a is p.chosen_ids) for p in both for a in (p.chosen_ids, p.rejected_ids)]

    rows = read(tmp_path / "answers")

    assert sorted((r.prompt_ids, r.answer_ids, r.label) for r in rows) == sorted(expected)
    assert [r.label for r in rows] == [True, False] * 12
    following = [*rows[1:], rows[0]]
    assert all(a.mismatched_ids == b.answer_ids for a, b in zip(rows, following, strict=True))
    assert all(a.prompt_ids != b.prompt_ids for a, b in zip(rows, following, strict=True))
    assert (counts["train"]["rows"], counts["train"]["split_pairs"]) == (24, 12)
    assert counts["train"]["tokens"] == whole["train"]["tokens"]
    assert "each pair is split into a good and a bad answer" in caplog.text
    assert "12 good and 12 bad answers" in caplog.text


def test_pairs_of_one_format_are_told_from_answers_of_the_same(tmp_path, tokenizer):
    turns = [{"from": "human", "value": "Hi"}]
    row = {"chosen": {"from": "gpt", "value": "yes"}, "rejected": {"from": "gpt", "value": "no"}}
    both = [{"conversations": [turns[0] | {"value": f"Hi {i}"}], **row} for i in range(3)]
    path = jsonl(tmp_path / "p.jsonl", both)
    prepare_unpaired(FileSource(path=path, format=RowFormat.sharegpt), tokenizer, tmp_path / "pairs")
    assert len(read(tmp_path / "pairs")) == 6

    spoken = [*turns, {"from": "gpt", "value": "yes"}]
    path = jsonl(tmp_path / "a.jsonl", [{"conversations": spoken, "label": i > 0} for i in range(3)])
    prepare_unpaired(FileSource(path=path, format=RowFormat.sharegpt), tokenizer, tmp_path / "answers")
    assert len(read(tmp_path / "answers")) == 3


def test_mismatched_answers_stay_within_max_length():
    rows = [EncodedAnswer([1] * n, [2] * m, True, []) for n, m in ((6, 2), (3, 7), (8, 1))]
    found = list(mismatched(rows, 10, "rows"))
    assert [len(row.prompt_ids) + len(row.mismatched_ids) for row in found] == [10, 4, 10]
    assert [len(row.answer_ids) for row in found] == [2, 7, 1]


def test_rows_followed_by_their_own_prompt_are_said(caplog):
    good, bad = EncodedAnswer([1], [2], True, []), EncodedAnswer([1], [3], False, [])
    list(mismatched([good, bad, EncodedAnswer([4], [5], True, [])], 10, "train of a.jsonl"))
    assert "train of a.jsonl: 1 rows are followed by one with the same prompt" in caplog.text


def test_answers_that_are_too_long_are_cut_as_those_of_pairs(tmp_path, tokenizer):
    rows = [{"prompt": "x" * 90, "completion": "y" * n, "label": n < 9} for n in (5, 70)]
    source = FileSource(
        path=jsonl(tmp_path / "a.jsonl", rows), max_length=40, max_prompt_length=20, too_long=TooLong.truncate
    )
    counts = prepare_unpaired(source, tokenizer, tmp_path)["train"]
    assert (counts["truncated_prompts"], counts["truncated_answers"], counts["longest"]) == (2, 1, 40)
    with pytest.raises(ValueError, match=r"row 2: field 'completion' has .* tokens"):
        prepare_unpaired(replace(source, too_long=TooLong.error), tokenizer, tmp_path)


@pytest.mark.parametrize(("label", "what"), [(True, "bring rows whose label is false"), (False, "is true")])
def test_rows_of_one_label_are_refused(tmp_path, tokenizer, label, what):
    path = answers(tmp_path / "a.jsonl", *[label] * 3)
    said = rf"train of .*a\.jsonl: label is {str(label).lower()} in all 3 rows, .*{what}"
    with pytest.raises(ValueError, match=said):
        prepare_unpaired(FileSource(path=path), tokenizer, tmp_path)


def test_rows_that_are_neither_pairs_nor_judged_are_refused(tmp_path, tokenizer):
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": "Q", "completion": "A"}])
    with pytest.raises(
        ValueError, match=r"finds no pairs or judged answers in the columns .*completion, label"
    ):
        prepare_unpaired(FileSource(path=path), tokenizer, tmp_path)


def test_held_out_rows_are_pairs_or_refused(tmp_path, tokenizer):
    both = [{"prompt": f"Q{i}", "chosen": "yes", "rejected": "no"} for i in range(6)]
    source = FileSource(path=jsonl(tmp_path / "p.jsonl", both), held_out=2)
    prepare_unpaired(source, tokenizer, tmp_path)
    assert [set(row) for row in read_held_out(tmp_path)] == [{"prompt", "chosen", "rejected"}] * 2
    assert len(read(tmp_path)) == 2 * (6 - 2)

    single = FileSource(path=answers(tmp_path / "a.jsonl", True, False, True), held_out=1)
    with pytest.raises(ValueError, match=r"held_out=1 .* compare two answers.* set it to 0"):
        prepare_unpaired(single, tokenizer, tmp_path)


# --- training --------------------------------------------------------------------------------------------


def test_step_of_one_kind_of_answer_logs_nothing_of_the_other():
    rows = [row for row in judged(24) if row.label][:8]
    (logged,) = run(make(BRANCHES["kto"]), rows)
    assert logged["train/chosen_rewards"] == pytest.approx(0, abs=1e-4)
    assert np.isnan(logged["train/rejected_rewards"]) and np.isnan(logged["train/margins"])
    assert np.isfinite(logged["train/loss"])


def test_validation_of_one_kind_of_answer_holds_no_nan():
    module = make(BRANCHES["kto"]).eval()
    rows = [row for row in judged(24) if row.label][:8]
    _, values = module.micro_loss(rows, whole_batch(rows))
    assert values.keys() == {"chosen_logps", "chosen_rewards"}


@pytest.mark.parametrize("name", ["kto", "kto apo"])
def test_scored_rows_give_the_loss_of_rows_that_are_not(tmp_path, compose, name):
    """The reference scores both answers of a row behind one prompt; training forwards each in a row of its own."""
    module, rows, settings = make(BRANCHES[name]), judged(8), compose("experiment=smoke").trainer
    scores = score_pairs(module.backbone, dict(enumerate(map(as_pair, rows))), PAD, settings)
    scores.to_parquet(tmp_path / FILE)
    known = scored(rows, tmp_path)
    assert all(isinstance(row, ScoredAnswer) and isinstance(row.mismatched, ScoredAnswer) for row in known)

    plain, with_scores = (run(move(make(BRANCHES[name], steps=2)), r, start=1)[0] for r in (rows, known))

    assert with_scores.keys() == plain.keys()
    for value in plain:  # sums over dozens of tokens in another order
        assert with_scores[value] == pytest.approx(plain[value], rel=1e-5, abs=2e-5)


def test_scores_of_other_rows_are_refused(tmp_path, compose):
    module, rows, settings = make(BRANCHES["kto"]), judged(8), compose("experiment=smoke").trainer
    scores = score_pairs(module.backbone, dict(enumerate(map(as_pair, rows))), PAD, settings)
    scores["row"] = scores["row"].to_numpy()[::-1]
    scores.to_parquet(tmp_path / FILE)
    wrong = scored(rows, tmp_path)
    with pytest.raises(ValueError, match=r"the reference is of another model or other rows"):
        module.micro_loss(wrong, whole_batch(wrong))


def test_merges_by_data_look_at_good_answers():
    row, (pair,) = EncodedAnswer([1, 2], [3], True, [4, 5]), pairs(1)
    assert chosen_text(row) == ([1, 2, 3], [IGNORE, IGNORE, 3])
    good, bad = split_pairs([pair])
    assert chosen_text(good) == chosen_text(pair) and not bad.label


def test_smoke_cell_trains_on_judged_answers(tmp_path, compose):
    path = answers(tmp_path / "a.jsonl", *[i % 3 > 0 for i in range(24)])
    words = ("experiment=smoke", "data=jsonl", "paradigm=preference", "callbacks=none", f"logs={tmp_path}")
    config = compose(*words, f"data.preference.path={path}", "preference=kto", "preference.max_steps=3")
    cell = build(config)
    context = context_of(config, Store(config.store), cell)
    (stage,) = (s for s in cell.walk() if s.name == "preference")

    folder = context.store.ensure(stage, context.run)

    history = pd.read_csv(folder / "history.csv")
    assert set(stage.inputs) == {"data", "reference"}
    assert history["train/loss"].iloc[0] == pytest.approx(
        0.5, abs=1e-5
    )  # all weights 1, policy and reference equal
    assert (history["train/kl"].dropna() >= 0).all()
    assert not torch.isnan(torch.tensor(history["train/chosen_logps"].iloc[0]))


def test_command_trains_on_the_embedded_pairs_up_to_its_table(tmp_path):
    words = ("experiment=smoke", "preference=kto", "callbacks=none", "trainer.progress_bar=false")
    done = train(*words, f"logs={tmp_path}", cwd=tmp_path, COLUMNS="200")
    assert done.returncode == 0, done.stderr
    assert "SFT_sparse+KTO" in done.stdout
    assert "each pair is split into a good and a bad answer" in done.stdout + done.stderr


@pytest.mark.parametrize("objective", [n for n, o in OBJECTIVES.items() if o.rows == "pairs"])
def test_judged_answers_are_refused_by_objectives_of_pairs(tmp_path, compose, objective):
    path = answers(tmp_path / "a.jsonl", True, False)
    words = ("experiment=smoke", "data=jsonl", "paradigm=preference", f"preference={objective}")
    config = compose(*words, f"data.preference.path={path}", f"logs={tmp_path}")
    cell = build(config)
    context = context_of(config, Store(config.store), cell)
    with pytest.raises(
        ValueError, match=r"a\.jsonl, row 1: .* set preference=kto, which learns from such rows"
    ):
        context.store.ensure(cell, context.run)
