"""`evaluate.include_path`: lm-eval's task folders as they are; their content is in the key, their code asks first."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import train
from synthetic_store import PAFT
from tiny import MODEL

from paft.command.compose import with_new_tasks
from paft.config import EvaluateConfig, TaskConfig, Template
from paft.evaluate.columns import columns_of, manager_for, require_items
from paft.evaluate.stage import score_tasks
from paft.graph import tasks
from paft.graph.build import build
from paft.model.base import base_folder, load_tokenizer
from paft.proof.base import load_base

PLAIN = """task: capitals
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
output_type: multiple_choice
test_split: test
doc_to_text: "The capital of {{country}} is"
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list: [{metric: acc}, {metric: acc_norm}]
tag: places
"""
CODED = "include: capitals.yaml\ntask: shouted\ndoc_to_text: !function utils.shout\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plain task, one with a function of Python's, and a group of both."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [
        {"country": c, "choices": ["Paris", "Rome"], "gold": n} for n, c in enumerate(("France", "Italy"))
    ]
    data = tmp_path / "elsewhere.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    mine = tmp_path / "mine" / "places"
    mine.mkdir(parents=True)
    (mine / "capitals.yaml").write_text(PLAIN % data)
    (mine / "shouted.yaml").write_text(CODED)
    (mine / "utils.py").write_text("def shout(doc):\n    return doc['country'].upper()\n")
    (mine / "both.yaml").write_text(
        "group: both\ntask: [capitals, shouted]\naggregate_metric_list: [{metric: acc}]\n"
    )
    return mine.parent


def including(folder: Path, task: str, **settings: object) -> EvaluateConfig:
    column = TaskConfig(task, "acc,none", mean_over="" if task == "both" else None)
    return replace(PAFT.evaluate, tasks={"mine": column}, include_path=str(folder), limit=None, **settings)


def checked(config: EvaluateConfig) -> None:
    manager = manager_for(config)
    columns_of(config, manager)
    require_items(config, manager)


# --- taken as they are --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word", ["evaluate.tasks.mine={task: capitals, metric: 'acc,none'}", "+evaluate.tasks.mine.task=capitals"]
)
def test_a_task_of_the_folder_is_a_column_on_the_command_line(compose, folder, word):
    words = with_new_tasks([f"evaluate.include_path={folder}", word])

    assert compose(*words).evaluate.tasks["mine"].task == "capitals"


def test_a_column_that_is_there_is_set_as_before(compose):
    words = with_new_tasks(["evaluate.tasks.honesty={num_items: 3}"])

    assert compose(*words).evaluate.tasks["honesty"] == TaskConfig("paft_honesty", "acc,none", num_items=3)


def test_tasks_and_groups_of_the_folder_are_scored(folder):
    base = base_folder(MODEL)
    for name, items in (("capitals", 2), ("shouted", 2), ("both", 4)):
        config = including(folder, name, trust_task_code=True)
        checked(config)
        scores, samples = score_tasks(load_base(base, MODEL), load_tokenizer(base, Template.chatml), config)
        assert scores["mine"].task == name and len(samples) == items


def test_a_name_that_is_nowhere_is_refused_with_the_file_that_cannot_be_read(folder):
    (folder / "broken.yaml").write_text("task: [")

    with pytest.raises(
        ValueError, match=r"task=capital is no task .*near it: capitals.*broken\.yaml cannot be read"
    ):
        columns_of(
            replace(including(folder, "capital"), trust_task_code=True),
            manager_of_the_folder_alone(folder),
        )


def manager_of_the_folder_alone(folder: Path):
    """Reading all of lm-eval's tasks takes seconds."""
    return manager_for(including(folder, "capitals"))


def test_missing_rows_are_refused_before_a_model_is_loaded(folder):
    (folder.parent / "elsewhere.jsonl").unlink()

    with pytest.raises(
        ValueError, match=r"the task capitals of .*capitals\.yaml cannot be loaded by lm-eval: \w+"
    ):
        checked(including(folder, "capitals"))


# --- code ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["shouted", "both"])
def test_a_function_is_refused_by_name_and_not_loaded(folder, name):
    (folder / "places/utils.py").write_text("raise SystemExit('it ran')\n")

    with pytest.raises(
        ValueError, match=r"shouted\.yaml runs the Python function utils\.shout; .*trust_task_code=true"
    ):
        checked(including(folder, name))
    checked(including(folder, "capitals"))


@pytest.mark.parametrize("written", ["!<!function> utils.shout", "!function 'utils.shout'"])
def test_a_function_is_seen_however_it_is_written(folder, written):
    (folder / "places/shouted.yaml").write_text(
        f"include: [capitals.yaml]\ntask: shouted\ndoc_to_text: {written}\n"
    )

    with pytest.raises(ValueError, match=r"runs the Python function utils\.shout"):
        manager_for(including(folder, "shouted"))


def test_a_function_in_an_included_file_is_seen(folder):
    outside = folder.parent / "other.yaml"
    outside.write_text("doc_to_text: !function os.system\n")
    (folder / "places/capitals.yaml").write_text(f"include: {outside}\ntask: capitals\n")

    with pytest.raises(ValueError, match=r"other\.yaml runs the Python function os\.system"):
        manager_for(including(folder, "capitals"))


@pytest.mark.parametrize("metric", ["{metric: someone/mine}", "{metric: acc, hf_evaluate: true}"])
def test_a_metric_of_the_hub_is_code(folder, metric):
    file = folder / "places/capitals.yaml"
    file.write_text(file.read_text().replace("{metric: acc}", metric))

    with pytest.raises(ValueError, match=r"capitals\.yaml runs the metric \S+, which is code of the hub's"):
        manager_for(including(folder, "capitals"))


def test_the_command_line_refuses_code_before_anything_is_trained(folder, tmp_path):
    words = (
        "experiment=smoke",
        f"evaluate.include_path={folder}",
        "evaluate.tasks.mine={task: shouted}",
        "logs=out",
    )

    done = train(*words, cwd=tmp_path)
    plan = train(*words, "plan=true", cwd=tmp_path)

    assert done.returncode == 2 and "runs the Python function utils.shout" in done.stderr
    assert not list(tmp_path.glob("out/stages/sft/*/stage.json"))
    assert plan.returncode == 0, plan.stderr


# --- keys ---------------------------------------------------------------------------------------------


def test_the_content_of_the_folder_and_of_what_it_reads_is_part_of_the_key(folder, tmp_path):
    def key() -> str:
        return build(replace(PAFT, evaluate=including(folder, "capitals"))).key

    keys = [key()]
    for path in (
        folder / "places/capitals.yaml",
        folder / "places/utils.py",
        folder.parent / "elsewhere.jsonl",
    ):
        path.write_text(path.read_text() + "\n")
        keys.append(key())
    trusted = replace(including(folder, "capitals"), trust_task_code=True)

    assert len(set(keys)) == 4
    assert build(replace(PAFT, evaluate=trusted)).key == keys[-1]


def test_a_task_that_was_put_beside_pafts_own_is_known_by_its_content(tmp_path, monkeypatch):
    cell = replace(PAFT, evaluate=replace(PAFT.evaluate, tasks={"c": TaskConfig("guess", "acc,none")}))
    before = build(cell).key, build(PAFT).key
    monkeypatch.setattr(tasks, "TASKS", tmp_path)
    (tmp_path / "any_name.yaml").write_text("task: guess\n")
    first = build(cell).key
    (tmp_path / "any_name.yaml").write_text("task: guess\nnum_fewshot: 1\n")

    assert len({before[0], first, build(cell).key}) == 3
    assert build(PAFT).key == before[1]


def test_the_tasks_that_are_shipped_are_those_without_a_digest():
    assert {path.stem for path in tasks.TASKS.glob("*.yaml")} == set(tasks.SHIPPED)
