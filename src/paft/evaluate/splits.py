"""`evaluate.split`: which items of each task are scored, so that what is chosen by some is reported on others."""

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from paft.config import EvaluateConfig, EvaluateSplit

Samples = dict[str, list[int]]
"""lm-eval task -> the numbers of its items to score, in order."""


def choose(
    config: EvaluateConfig,
    names: Iterable[str],
    manager: TaskManager,
    files: Mapping[str, str] | None = None,
) -> tuple[list[Any], Samples | None]:
    """(tasks, samples) for `simple_evaluate`; the task's own items, and None, where the split is `full`.

    `files` are those that some of the tasks are loaded from.

    With samples lm-eval takes no limit: `config.limit` is in them. Raises `ValueError` for a task too small to cut.
    """
    num_items = {task.task: task.num_items for task in config.tasks.values()}
    sources = {name: (files or {}).get(name, name) for name in names}
    if config.split is EvaluateSplit.full and not any(num_items.values()):
        return list(sources.values()), None
    random.seed(config.seed)  # as `simple_evaluate` does: a task may shuffle its choices while it is loaded
    loaded = manager.load(list(sources.values()))
    samples: Samples = {}
    for name, task in loaded["tasks"].items():
        chosen = draw(name, _items(config, name, task), num_items.get(name), config)[: config.limit]
        if not chosen:
            raise ValueError(
                f"evaluate.validation_share={config.validation_share} leaves {name}, which has {len(task.eval_docs)} "
                f"items, none for {config.split.value}; choose another share or leave the task out"
            )
        samples[name] = chosen
    groups = loaded.get("groups", {})
    return [groups.get(name) or loaded["tasks"][name] for name in sources], samples


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
