"""Held-out rows: never trained on, and scored by the tasks that are made of them."""

import json
from pathlib import Path

import hydra
import pytest
import torch
from omegaconf import open_dict
from tiny import MODEL
from transformers import AutoModelForCausalLM

from paft.chat.conversation import PreferencePair
from paft.chat.encode import encode_pair
from paft.command.compose import to_config
from paft.command.pipeline import run_cell
from paft.config import FileSource, Template
from paft.data.held_out import draw, read_held_out
from paft.data.prepare import prepare_preference, prepare_sft
from paft.data.tokens import read_sft
from paft.evaluate.columns import task_manager
from paft.evaluate.lm import SparingLM
from paft.evaluate.tasks.held_out import exact_answer, plausible
from paft.graph.build import build
from paft.model.base import base_folder, load_tokenizer
from paft.proof.base import load_base

HELD_OUT = 12


def question(number: int) -> dict:
    solution = f"He has {number} + 3 = <<{number}+3={number + 3}>>{number + 3}.\n#### {number + 3}"
    asked = f"Tom has {number} apples and gets 3. How many?"
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": solution}]}


def pair(number: int) -> dict:
    """Two rows of each conversation; the second is longer."""
    said = [{"role": "user", "content": f"Topic {number // 2}?"}]
    if number % 2:
        said += [{"role": "assistant", "content": "Well."}, {"role": "user", "content": "And then?"}]
    answers = {"chosen": "Politely.", "rejected": "Rudely!"}
    return {"prompt": said} | {k: [{"role": "assistant", "content": v}] for k, v in answers.items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("rows")
    for name, row in {"sft": question, "preference": pair}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row(i)) + "\n" for i in range(60)))
    return {name: folder / f"{name}.jsonl" for name in ("sft", "preference")}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(base_folder(MODEL), Template.chatml)


def source(path: Path, **settings) -> FileSource:
    return FileSource(path=str(path), max_length=256, max_prompt_length=192, held_out=HELD_OUT, **settings)


def test_train_and_held_out_rows_are_all_rows(files, tokenizer, tmp_path):
    counts = prepare_sft(source(files["sft"]), tokenizer, tmp_path)
    held_out = [row["messages"] for row in read_held_out(tmp_path)]
    assert counts["train"]["rows"] == len(read_sft(tmp_path, "train")) == 60 - HELD_OUT
    trained = [tokenizer.decode(row.input_ids) for row in read_sft(tmp_path, "train")]
    for messages in (question(i)["messages"] for i in range(60)):
        asked = messages[0]["content"]
        assert sum(asked in text for text in trained) == (messages not in held_out)


def test_rows_of_one_conversation_are_on_one_side(files, tokenizer, tmp_path):
    prepare_preference(source(files["preference"]), tokenizer, tmp_path)
    openings = [row["prompt"][0]["content"] for row in read_held_out(tmp_path)]
    assert len(openings) == HELD_OUT and all(openings.count(o) == 2 for o in openings)


def test_draw_depends_on_the_seed_alone():
    openings = [str(i) for i in range(50)]
    assert draw(openings, 10, 0) == draw(openings, 10, 0) != draw(openings, 10, 1)
    assert len(draw(openings, 10, 0)) == 10


def test_holding_everything_out_is_refused():
    with pytest.raises(ValueError, match="held_out=50 leaves none of 50 rows to train on"):
        draw([str(i) for i in range(50)], 50, 0)


def words(files, logs: Path, held_out: int = HELD_OUT) -> list[str]:
    steps = [f"{branch}.{name}" for branch in files for name in ("max_steps=2", "global_batch_size=2")]
    rows = [f"data.{branch}.held_out={held_out}" for branch in files]
    paths = [f"data.{branch}.path={path}" for branch, path in files.items()]
    chosen = ["model=tiny", "logger=csv", "data=jsonl", "evaluate=gsm8k_hh", "evaluate.limit=4"]
    return [*chosen, *steps, *rows, *paths, f"logs={logs}"]


def test_cell_is_scored_on_rows_it_did_not_train_on(compose, files, tmp_path):
    config = compose(*words(files, tmp_path), "merge.keep=false")
    cell = build(config)
    folder = run_cell(config, cell)
    results = json.loads((folder / "results.json").read_text())
    assert list(results["tasks"])[:2] == ["gsm8k_choice", "hh_choice"]
    assert results["tasks"]["gsm8k_choice"]["num_items"] == 4
    assert results["average"] == pytest.approx(
        sum(results["tasks"][c]["score"] for c in ("gsm8k_choice", "hh_choice", "mmlu_dev")) / 3
    )
    for branch in files:  # merge.keep=false deletes the merged model, not the rows
        assert (tmp_path / "stages/data" / cell.inputs[f"{branch}_data"].key / "held_out.jsonl").is_file()
    base = compose(*words(files, tmp_path), "paradigm=base")
    assert (run_cell(base, build(base)) / "results.json").is_file()


def test_margin_against_log_probabilities_of_transformers(compose, files, tokenizer, tmp_path):
    config = compose(*words(files, tmp_path), "paradigm=base", "evaluate.dtype=float32")
    cell = build(config)
    lines = (run_cell(config, cell) / "samples.jsonl").read_text().splitlines()
    samples = [json.loads(line) for line in lines]
    margins = {s["item"]: s["value"] for s in samples if s["column"] == "hh_margin"}
    right = {s["item"]: s["value"] for s in samples if s["column"] == "hh_choice"}
    model = AutoModelForCausalLM.from_pretrained(base_folder(config.model), dtype=torch.float32).eval()
    rows = read_held_out(tmp_path / "stages/data" / cell.inputs["preference_data"].key)
    assert len(margins) == 4
    for item, margin in margins.items():
        pair = encode_pair(tokenizer, PreferencePair(**rows[item]))
        chosen, rejected = (
            log_probability(model, tokenizer, pair.prompt_ids, rows[item][side][0]["content"])
            for side in ("chosen", "rejected")
        )
        assert margin == pytest.approx(chosen - rejected, abs=1e-3)  # float32 sums of some ten nats
        assert right[item] == float(chosen > rejected)


@torch.no_grad()
def log_probability(model, tokenizer, prompt: list[int], answer: str) -> float:
    ids = tokenizer(answer, add_special_tokens=False).input_ids
    logps = model(torch.tensor([[*prompt, *ids]])).logits[0].double().log_softmax(-1)
    return sum(float(logps[len(prompt) + i - 1, token]) for i, token in enumerate(ids))


def test_a_task_of_held_out_rows_needs_some(compose, files, tmp_path):
    with pytest.raises(Exception, match=r"data\.sft\.held_out must be positive, as the items of evaluate"):
        compose(*words(files, tmp_path, held_out=0))


def test_columns_of_one_task_are_scored_on_the_same_items(compose):
    with pytest.raises(Exception, match=r"num_items must be as in the other column of paft_mmlu_dev, 32"):
        compose("evaluate=study", "evaluate.tasks.mmlu_dev_bits.num_items=31")


@pytest.mark.parametrize(
    ("answer", "asked", "solution", "expected"),
    [
        ("72", "48 in April", "<<48/2=24>>24 and <<48+24=72>>72", ["72", "24", "48", "82"]),
        ("1500", "has 1,200 and 300", "<<1200+300=1500>>", ["1500", "1200", "3000", "1510"]),
        ("5", "", "", ["5", "6", "7", "8"]),
    ],
)
def test_plausible_numbers_are_four_and_about_as_long(answer, asked, solution, expected):
    assert plausible(answer, asked, solution) == expected


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("so 4\n#### 1,500", 1.0),
        ("#### 1500.00", 1.0),
        ("#### $1500", 1.0),
        ("#### 15000", 0.0),
        ("1500", 0.0),
    ],
)
def test_generated_answer_counts_if_its_number_is_right(text, right):
    assert exact_answer({"answer": "1500"}, [text]) == {"exact_match": right}


def test_scored_tokens_of_a_pair_are_those_training_sees(files, tokenizer, tmp_path):
    prepare_preference(source(files["preference"]), tokenizer, tmp_path)
    lm = SparingLM(pretrained=load_base(base_folder(MODEL), MODEL), tokenizer=tokenizer, device="cpu")
    task = task_manager({"paft_preference"}, {"preference_data": str(tmp_path)}).load(["paft_preference"])
    (task,) = task["tasks"].values()
    for row in read_held_out(tmp_path):
        trained = encode_pair(tokenizer, PreferencePair(**row))
        context = task.fewshot_context(
            {"messages": row["prompt"]}, 0, apply_chat_template=True, chat_template=lm.apply_chat_template
        )
        scored = lm.tok_encode(context), lm.tok_encode(row["chosen"][0]["content"])
        assert scored[0] == trained.prompt_ids
        assert scored[1] == trained.chosen_ids[: len(scored[1])]  # training adds the end-of-turn token


def test_a_task_of_conversations_says_what_it_needs(files, tokenizer, tmp_path):
    prepare_sft(source(files["sft"]), tokenizer, tmp_path)
    task = task_manager({"paft_gsm8k"}, {"sft_data": str(tmp_path)}).load(["paft_gsm8k"])
    with pytest.raises(ValueError, match=r"paft_gsm8k needs evaluate\.apply_chat_template=true"):
        next(iter(task["tasks"].values())).fewshot_context({"messages": []}, 0)


def test_answers_without_a_number_are_named(tokenizer, tmp_path):
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    (tmp_path / "held_out.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match=r"must end in '#### number' for a GSM8K task, got 'Hello'"):
        task_manager({"paft_gsm8k"}, {"sft_data": str(tmp_path)}).load(["paft_gsm8k"])


def test_choice_goes_on_where_the_last_step_has_its_result(files, tokenizer, tmp_path):
    prepare_sft(source(files["sft"]), tokenizer, tmp_path)
    lm = SparingLM(pretrained=load_base(base_folder(MODEL), MODEL), tokenizer=tokenizer, device="cpu")
    loaded = task_manager({"paft_gsm8k_choice"}, {"sft_data": str(tmp_path)}).load(["paft_gsm8k_choice"])
    (task,) = loaded["tasks"].values()
    rows = [row["messages"] for row in read_held_out(tmp_path)]
    assert len(task.eval_docs) == len(rows) == HELD_OUT
    for doc, (question_, solution) in zip(task.eval_docs, rows, strict=True):
        begun = task.fewshot_context(doc, 0, apply_chat_template=True, chat_template=lm.apply_chat_template)
        whole = lm.apply_chat_template([question_]) + solution["content"]
        assert whole.startswith(begun + doc["answers"][0]) and len(set(doc["answers"])) == 4


def test_a_column_the_report_has_is_refused_before_anything_runs(compose):
    compose()  # registers the schemas
    with hydra.initialize_config_dir(str(Path(__file__).parents[1] / "conf"), version_base="1.3"):
        config = hydra.compose("train")
    with open_dict(config):
        config.evaluate.tasks["preference"] = config.evaluate.tasks.honesty
    with pytest.raises(ValueError, match="the report has its own column 'preference'"):
        to_config(config)
