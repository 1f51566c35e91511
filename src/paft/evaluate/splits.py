"""`evaluate.split`: which items of each task are scored, so that what is chosen by some is reported on others."""

import random
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from paft.config import EvaluateConfig, EvaluateSplit

Samples = dict[str, list[int]]
"""lm-eval task -> the numbers of its items to score, in order."""


def choose(
    config: EvaluateConfig, names: Iterable[str], manager: TaskManager
) -> tuple[list[Any], Samples | None]:
    """(tasks, samples) for `simple_evaluate`; the task's own items, and None, where the split is `full`.

    With samples lm-eval takes no limit: `config.limit` is in them. Raises `ValueError` for a task too small to cut.
    """
    wanted = {task.task: task.num_items for task in config.tasks.values()}
    if config.split is EvaluateSplit.full and not any(wanted.values()):
        return list(names), None
    loaded = manager.load(list(names))
    samples: Samples = {}
    for name, task in loaded["tasks"].items():
        chosen = draw(name, _items(config, name, task), wanted.get(name), config)[: config.limit]
        if not chosen:
            raise ValueError(
                f"evaluate.validation_share={config.validation_share} leaves {name}, which has {len(task.eval_docs)} "
                f"items, none for {config.split.value}; choose another share or leave the task out"
            )
        samples[name] = chosen
    groups = loaded.get("groups", {})
    return [groups.get(name) or loaded["tasks"][name] for name in names], samples


def refuse_tasks(config: EvaluateConfig, manager: TaskManager) -> None:
    """Raise `ValueError` for a column whose task is none of lm-eval's, or several that it does not say how to count."""
    several = {*manager.all_groups, *manager.all_tags}
    for column, task in config.tasks.items():
        at = f"evaluate.tasks.{column}"
        if task.task not in manager.all_tasks:
            near = ", ".join(get_close_matches(task.task, manager.all_tasks)) or "lm-eval ls tasks lists them"
            raise ValueError(f"{at}.task={task.task} is no task of lm-eval or PAFT; near it: {near}")
        if task.task in manager.all_tags:
            raise ValueError(
                f"{at}.task={task.task} is a tag of several tasks; give each a column of its own"
            )
        if task.task in several and task.mean_over is None:
            raise ValueError(
                f"{at}.task={task.task} is a group of tasks; {at}.mean_over={task.task}_ makes the column the mean "
                "over its tasks whose names start so, each counting once; or give tasks columns of their own"
            )
        if task.mean_over is not None and (task.task not in several or task.num_items is not None):
            wrong = f"num_items={task.num_items}" if task.task in several else f"mean_over={task.mean_over}"
            raise ValueError(
                f"{at}.{wrong} has no meaning for {task.task}: num_items draws from one task, mean_over is over a group"
            )


def draw(name: str, items: Iterable[int], num_items: int | None, config: EvaluateConfig) -> list[int]:
    """`num_items` of a task's items, the same for every model, in the task's order; all where there are no more."""
    numbers = list(items)
    if num_items is None or num_items >= len(numbers):
        return numbers
    return sorted(random.Random(f"paft items of {name} {config.split_seed}").sample(numbers, num_items))


def _items(config: EvaluateConfig, name: str, task: Task) -> Iterable[int]:
    if config.split is EvaluateSplit.full:
        return range(len(task.eval_docs))
    validating = config.split is EvaluateSplit.validation
    if has_own_validation(task):
        if validating:
            task.config.test_split = None  # lm-eval scores the validation split where there is no test split
        return range(len(task.eval_docs))
    return cut(name, [str(doc) for doc in task.eval_docs], config, validation=validating)


def has_own_validation(task: Task) -> bool:
    """Whether a task has a validation split beside the one it reports."""
    return task.config.test_split is not None and task.config.validation_split is not None


def cut(name: str, texts: Sequence[str], config: EvaluateConfig, *, validation: bool) -> list[int]:
    """The numbers of a task's validation items, or of the others; the same for every model.

    Items of the same text stay together.
    """
    distinct = list(dict.fromkeys(texts))
    chooser = random.Random(f"paft {name} {config.split_seed}")
    drawn = set(chooser.sample(distinct, round(config.validation_share * len(distinct))))
    return [number for number, text in enumerate(texts) if (text in drawn) is validation]
