"""Sharing of forward passes, the embedded tasks' documents, bits per byte, and the evaluate stage's files."""

import json
import math
import random

import pytest
import torch
import torch.nn.functional as F
import transformers
from lm_eval.models.huggingface import HFLM
from tiny import MODEL

from paft.config import EvaluateConfig, Skill, TaskConfig, Template
from paft.data.demo import demo_rows
from paft.evaluate.columns import task_manager
from paft.evaluate.lm import SparingLM
from paft.evaluate.stage import evaluate_model, score_tasks
from paft.evaluate.tasks.docs import (
    exact_call,
    honesty,
    letter_and_bits,
    mmlu_dev,
    tool_call,
    worked_questions,
)
from paft.forward.limits import MAX_TOKENS, Limits
from paft.forward.tree import MAX_ROW, Row, Trunk, batches, branches_of, grow
from paft.model.base import base_folder, load_tokenizer
from paft.proof.base import load_base

MMLU = TaskConfig(task="paft_mmlu_dev", metric="bits_per_byte,none", higher_is_better=False, in_average=False)
CONFIG = EvaluateConfig(
    name="few",
    limit=4,
    batch_size=4,
    tasks={
        "honesty": TaskConfig(task="paft_honesty", metric="acc,none"),
        "mmlu_dev": TaskConfig(task="paft_mmlu_dev", metric="acc,none"),
        "bits": MMLU,
    },
)


# --- sharing -------------------------------------------------------------------------------------------


def random_requests(seed: int, num: int) -> list[tuple[None, list[int], list[int]]]:
    """Contexts from few distinct beginnings over few tokens, so that much is shared."""
    r = random.Random(seed)
    starts = [[r.randrange(3) for _ in range(r.randrange(1, 12))] for _ in range(3)]
    return [
        (
            None,
            r.choice(starts) + [r.randrange(2) for _ in range(r.randrange(3))],
            [r.randrange(2) for _ in range(r.randrange(1, 5))],
        )
        for _ in range(num)
    ]


def seen(row: Row, column: int) -> list[int]:
    """Tokens of the row that the one in `column` looks back at, itself included."""
    return [row.tokens[c] for c in range(column + 1) if c == column or column < row.ends[c]]


def every_target(trunk: Trunk, past: list[int]) -> list[tuple[int, list[int], int]]:
    """(request, everything its target is predicted from, target), for every target in the tree."""
    own = [(a.request, past + seen(trunk.row, a.column), a.target) for a in trunk.row.asks]
    inside = past + trunk.row.tokens
    for row in trunk.rows:
        for column, position in enumerate(row.positions):
            assert position == len(inside) + len(seen(row, column)) - 1, (
                "a token's position is its place in its text"
            )
        own += [(a.request, inside + seen(row, a.column), a.target) for a in row.asks]
    return own + [found for child in trunk.trunks for found in every_target(child, inside)]


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("max_length", [6, 100])
@pytest.mark.parametrize("seed", range(20))
def test_every_target_is_predicted_from_its_own_text(seed, max_length, share):
    asked = random_requests(seed, 40)
    tree = grow(branches_of(asked, max_length), share=share)
    found = {(index, len(past)): (past, target) for index, past, target in every_target(tree, [])}
    expected = {}
    for index, (_, context, continuation) in enumerate(asked):
        kept = (context + continuation)[-(max_length + 1) :]
        for place in range(len(kept) - len(continuation), len(kept)):
            expected[index, place] = (kept[:place], kept[place])
    assert found == expected


def test_what_many_questions_begin_with_is_there_once():
    shots = list(range(100, 1100))
    asked = [(None, shots + [q] * 30, [q, c] * 5) for q in range(40) for c in (1, 2, 3, 4)]
    tree = grow(branches_of(asked, 4096))
    (trunk,) = tree.trunks
    assert trunk.row.tokens == shots and not tree.rows
    assert tree.num_tokens < len(shots) + 40 * (30 + 4 * 9) + 1
    assert all(len(row.tokens) <= MAX_ROW for row in trunk.rows)


def test_zero_shot_texts_of_their_own_stay_plain_rows():
    asked = [(None, [q] * 30, [q + 1, q]) for q in range(40)]
    tree = grow(branches_of(asked, 4096))
    assert len(tree.rows) == 40 and not tree.trunks
    assert not any(row.branched for row in tree.rows)


def test_letters_ride_on_the_worked_answer():
    context = [9, 9, 9]
    asked = [(None, context, [letter]) for letter in (1, 2, 3, 4)] + [(None, context, [5, 6, 7])]
    (branch,) = branches_of(asked, 100)
    assert branch.tokens == [9, 9, 9, 5, 6]
    assert sorted(index for index, *_ in branch.riders) == [0, 1, 2, 3, 4]


def test_a_continuation_that_does_not_fit_is_refused():
    assert branches_of([(None, [1], [2] * 5)], 5)[0].tokens == [1, 2, 2, 2, 2]
    with pytest.raises(ValueError, match=r"continuation of 6 tokens does not fit the model's 5"):
        branches_of([(None, [1], [2] * 6)], 5)


def test_batches_hold_every_row_within_both_bounds():
    rows = [Row([1] * n, list(range(n)), [n] * n, []) for n in (3, 5000, 900, 900, 900, 900, 900, 40, 40, 2)]
    cut = list(batches(rows, Limits(3)))
    assert sorted(len(row.tokens) for batch in cut for row in batch) == sorted(
        len(row.tokens) for row in rows
    )
    for batch in cut:
        assert len(batch) <= 3
        assert len(batch) == 1 or len(batch) * len(batch[0].tokens) <= MAX_TOKENS["cpu"]


def test_own_model_class_is_lm_evals():
    assert issubclass(SparingLM, HFLM)


# --- documents -----------------------------------------------------------------------------------------


def test_mmlu_dev_parses_every_question_that_lm_eval_ships():
    docs = mmlu_dev()["test"]
    assert len(docs) == 282
    counts = {s: docs["subject"].count(s) for s in set(docs["subject"])}
    assert len(counts) == 57 and sorted(counts.values())[:4] == [4, 4, 4, 5]
    assert sorted(len(choices) - 1 for choices in docs["choices"]) == [4] * 281 + [5]


def test_every_mmlu_dev_question_has_its_options_and_its_gold_letter():
    for doc in mmlu_dev()["test"]:
        *letters, worked = doc["choices"]
        assert letters == list("ABCDE"[: len(letters)])
        assert worked.endswith(f"The answer is ({letters[doc['gold']]}).")
        lines = doc["question"].split("\n")
        options = [line for line in lines if line[:2] in [f"{letter}." for letter in letters]]
        assert len(options) == len(letters) and all(len(option) > 3 for option in options), doc["question"]
        assert "Let's think" not in doc["question"] and worked.count("The answer is (") == 1


def test_a_worked_question_by_hand():
    text = "Intro.\n\nQ: Two\nlines?\n(A) one (B) two (C) 3 (D) 4\nA: Let's see. The answer is (C)."
    (doc,) = worked_questions("maths", text)
    assert doc["question"] == "Two\nlines?\nA. one\nB. two\nC. 3\nD. 4"
    assert doc["choices"] == ["A", "B", "C", "D", "Let's see. The answer is (C)."] and doc["gold"] == 2


def test_a_question_that_cannot_be_read_names_the_subject():
    with pytest.raises(ValueError, match=r"cannot read a worked question of maths: 'no options"):
        worked_questions("maths", "Intro.\n\nQ: no options\nA: what?")


@pytest.mark.parametrize(("docs", "skill"), [(tool_call, Skill.tool_call), (honesty, Skill.honesty)])
def test_test_documents_are_not_training_rows(docs, skill):
    asked = set(docs()["test"]["request" if skill is Skill.tool_call else "prompt"])
    rows = demo_rows(skill, split="train", num_rows=512, seed=0)
    trained = {(row.get("messages") or row["prompt"])[0]["content"] for row in rows}
    assert len(docs()["test"]) == 200 and not asked & trained


def test_exact_call_is_to_the_letter():
    doc = {"call": "f(1)"}
    assert exact_call(doc, [" f(1)\n"]) == {"exact_match": 1.0}
    assert (
        exact_call(doc, ["f(1) "])["exact_match"] == 1.0 and exact_call(doc, ["f(2)"])["exact_match"] == 0.0
    )


def test_letter_and_bits_by_hand():
    doc = {"gold": 1, "choices": ["A", "B", "wörk"]}
    assert letter_and_bits(doc, [(-2.0, False), (-1.0, True), (-7.0, False)]) == {
        "acc": 1.0,
        "bits_per_byte": (-7.0, 5),
    }
    assert letter_and_bits(doc, [(-1.0, False), (-2.0, True), (-7.0, False)])["acc"] == 0.0


# --- scores --------------------------------------------------------------------------------------------


def direct_bits(num: int) -> list[tuple[float, int]]:
    """(bits, bytes) of the worked answers from the model's own logits, one sequence at a time."""
    folder = base_folder(MODEL)
    model, tokenizer = load_base(folder, MODEL), load_tokenizer(folder, Template.chatml)
    found = []
    for doc in list(mmlu_dev()["test"])[:num]:
        before, answer = (
            tokenizer(t, add_special_tokens=False).input_ids for t in (doc["question"], doc["choices"][-1])
        )
        with torch.no_grad():
            logits = model(torch.tensor([before + answer])).logits[0, len(before) - 1 : -1]
        nats = F.cross_entropy(logits, torch.tensor(answer), reduction="sum").item()
        found.append((nats / math.log(2), len(doc["choices"][-1].encode())))
    return found


@pytest.fixture(scope="module")
def scored():
    folder = base_folder(MODEL)
    return score_tasks(load_base(folder, MODEL), load_tokenizer(folder, Template.chatml), CONFIG)


def test_bits_per_byte_and_its_error_against_direct_computation(scored):
    pairs = direct_bits(4)
    total = sum(b for _, b in pairs)
    ratio = sum(x for x, _ in pairs) / total
    error = math.sqrt(4 / 3 * sum((x - ratio * b) ** 2 for x, b in pairs)) / total  # n / (n - 1): unbiased
    assert scored[0]["bits"].score == pytest.approx(ratio, rel=1e-5)
    assert scored[0]["bits"].stderr == pytest.approx(error, rel=1e-3)


def test_columns_keep_their_order_and_their_items(scored):
    scores, samples = scored
    assert list(scores) == ["honesty", "mmlu_dev", "bits"]
    for column, found in scores.items():
        own = [s for s in samples if s["column"] == column]
        assert [s["item"] for s in own] == [0, 1, 2, 3] and found.num_items == 4
    values = [s["value"] for s in samples if s["column"] == "mmlu_dev"]
    assert scores["mmlu_dev"].score == sum(values) / 4


def test_scores_do_not_depend_on_the_batch_size(scored):
    folder = base_folder(MODEL)
    one = EvaluateConfig(name="one", limit=4, batch_size=1, tasks=CONFIG.tasks)
    alone, _ = score_tasks(load_base(folder, MODEL), load_tokenizer(folder, Template.chatml), one)
    for column, found in scored[0].items():
        assert alone[column].score == pytest.approx(found.score, abs=1e-5)


def test_few_shot_columns_of_the_same_task_are_told_apart():
    folder = base_folder(MODEL)
    honest = "paft_honesty"
    tasks = {f"shots{n}": TaskConfig(task=honest, metric="acc,none", num_fewshot=n) for n in (0, 2)}
    found, samples = score_tasks(
        load_base(folder, MODEL),
        load_tokenizer(folder, Template.chatml),
        EvaluateConfig(name="x", limit=4, tasks=tasks),
    )
    assert [found[c].num_fewshot for c in tasks] == [0, 2] and len(samples) == 8


def test_stage_writes_results_and_samples(tmp_path):
    folder = base_folder(MODEL)
    returned = evaluate_model(folder, folder, MODEL, Template.chatml, CONFIG, tmp_path)
    written = json.loads((tmp_path / "results.json").read_text())
    assert written == json.loads(json.dumps(returned))
    assert written["backend_version"] == transformers.__version__
    said = {
        "template": "chatml",
        "dtype": "float32",
        "computed_in": "float32",
        "backend": "hf",
        "limit": 4,
        "apply_chat_template": False,
    }
    assert {name: written[name] for name in said} == said
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == 12


def test_own_tasks_need_no_index_of_lm_evals():
    assert set(task_manager({"paft_honesty"}).all_tasks) == {
        "paft_tool_call",
        "paft_honesty",
        "paft_mmlu_dev",
        "paft_gsm8k",
        "paft_gsm8k_choice",
        "paft_answers",
        "paft_preference",
    }
