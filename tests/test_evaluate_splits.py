"""Validation items and test items: none in common, the same for every model, and told apart afterwards."""

import pytest
from tiny import MODEL

from paft.config import EvaluateConfig, EvaluateSplit, TaskConfig, Template
from paft.evaluate.columns import task_manager
from paft.evaluate.results import Results
from paft.evaluate.splits import choose, cut
from paft.evaluate.stage import score_tasks
from paft.files.jsonfile import write_json
from paft.graph.build import build
from paft.model.base import base_folder, load_tokenizer
from paft.proof.base import load_base

TASKS = {
    "tool_call": TaskConfig(task="paft_tool_call", metric="exact_match,none"),
    "honesty": TaskConfig(task="paft_honesty", metric="acc,none"),
    "mmlu_dev": TaskConfig(task="paft_mmlu_dev", metric="acc,none"),
}


def config(split: EvaluateSplit, **settings) -> EvaluateConfig:
    return EvaluateConfig(**({"name": "few", "tasks": TASKS, "split": split, "batch_size": 8} | settings))


def texts(split: EvaluateSplit) -> dict[str, set[str]]:
    """Task -> the items that would be scored, as text."""
    names = [task.task for task in TASKS.values()]
    tasks, samples = choose(config(split), names, task_manager(set(names)))
    assert samples is not None
    return {t.config.task: {str(t.eval_docs[i]) for i in samples[t.config.task]} for t in tasks}


def test_validation_and_test_share_no_item():
    validation, test = texts(EvaluateSplit.validation), texts(EvaluateSplit.test)
    for name in validation:
        assert not validation[name] & test[name], name
        assert len(validation[name]) >= 80 and len(test[name]) >= 190, name
    # 282 questions, one of them twice
    assert len(validation["paft_mmlu_dev"]) + len(test["paft_mmlu_dev"]) == 281


def test_cut_depends_on_seed_and_task_alone():
    texts = [str(number) for number in range(100)]
    settings, other = config(EvaluateSplit.test), config(EvaluateSplit.test, split_seed=1)
    some = cut("a", texts, settings, validation=True)
    assert len(some) == 30 and some == cut("a", texts, settings, validation=True)
    assert some != cut("b", texts, settings, validation=True)
    assert some != cut("a", texts, other, validation=True)
    assert sorted(some + cut("a", texts, settings, validation=False)) == list(range(100))


def test_items_of_one_text_are_on_one_side():
    texts = [str(number % 10) for number in range(40)]
    some = cut("a", texts, config(EvaluateSplit.test), validation=True)
    assert len(some) == 12 and len({texts[number] for number in some}) == 3


def test_a_task_too_small_to_cut_is_refused():
    small = config(EvaluateSplit.validation, validation_share=0.001)
    with pytest.raises(ValueError, match="leaves paft_mmlu_dev, which has 282 items, none for validation"):
        choose(small, ["paft_mmlu_dev"], task_manager({"paft_mmlu_dev"}))


def test_scores_are_of_the_chosen_items():
    base = base_folder(MODEL)
    tokenizer = load_tokenizer(base, Template.chatml)
    only = {"mmlu_dev": TASKS["mmlu_dev"]}
    found = {}
    for split in (EvaluateSplit.validation, EvaluateSplit.test):
        chosen = config(split, tasks=only, limit=5)
        scores, samples = score_tasks(load_base(base, MODEL), tokenizer, chosen)
        assert scores["mmlu_dev"].num_items == 5
        found[split] = [sample["item"] for sample in samples]
        assert found[split] == sorted(found[split]) != list(range(5))
    assert not {*found[EvaluateSplit.validation]} & {*found[EvaluateSplit.test]}


def test_split_is_part_of_the_key_where_it_is_set(compose):
    def key(*words: str) -> str:
        return build(compose("experiment=smoke", *words)).key

    assert key("evaluate.split=full", "evaluate.objective=honesty") == key()
    assert len({key(), key("evaluate.split=test"), key("evaluate.split=validation")}) == 3


@pytest.mark.parametrize(("column", "value"), [("average", 0.4), ("good", 0.7), ("bits", -1.5)])
def test_objective_is_larger_where_the_model_is_better(column, value, tmp_path):
    tasks = {
        "good": {"score": 0.7, "stderr": 0.1, "higher_is_better": True},
        "bits": {"score": 1.5, "stderr": None, "higher_is_better": False},
    }
    write_json(tmp_path / "results.json", {"tasks": tasks, "average": 0.4})

    assert Results.read(tmp_path).objective(column) == value


def test_objective_must_be_a_column():
    with pytest.raises(ValueError, match=r"evaluate\.objective must be one of \['average', 'tool_call'"):
        config(EvaluateSplit.full, objective="tool_cal")
    with pytest.raises(ValueError, match=r"no column of evaluate.tasks is in the average"):
        Results({}, None).objective("average")
