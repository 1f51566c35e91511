"""What the columns of a table are in lm-eval: which task, loaded from where, and which of its metrics.

Whatever lm-eval's task files tell is refused in words before anything is trained. Loads no torch.
"""

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lm_eval.api.registry import DEFAULT_METRIC_REGISTRY
from lm_eval.tasks import TaskManager

from paft.config import EvaluateConfig, JudgedConfig, TaskConfig
from paft.evaluate.backends import refuse_settings, require_backend
from paft.evaluate.included import is_included, refuse_code, require_included, unreadable
from paft.evaluate.index import lm_evals_index
from paft.evaluate.leaves import leaves, reached
from paft.evaluate.local import read_locally, require_rows
from paft.evaluate.packages import lacking, require_packages
from paft.files.hub import unavailable
from paft.graph.task_files import settings_of
from paft.graph.tasks import TASKS
from paft.private import know_also


@dataclass(frozen=True)
class Columns:
    """An evaluation in lm-eval's words."""

    config: EvaluateConfig
    """Each task by its name in lm-eval, and with a metric."""
    files: dict[str, str]
    """Name of a task -> the file it is loaded from, where that is the user's."""


def columns_of(config: EvaluateConfig, manager: TaskManager) -> Columns:
    """The columns as lm-eval knows them.

    Raises `ValueError` for a task or metric that lm-eval does not have, a task that is several and does not say how
    they count, a file that is no task, and a setting of a task that the backend cannot do.
    """
    if isinstance(config, JudgedConfig):
        return Columns(config, {})  # none is lm-eval's
    tasks: dict[str, TaskConfig] = {}
    sources: dict[str, str] = {}
    for column, task in config.tasks.items():
        at = f"evaluate.tasks.{column}"
        if task.file:
            name, metrics = _in_file(at, task.file, manager)
        else:
            _refuse_several(at, task, manager)
            name, metrics = task.task, _known_metrics(task, manager)
        for metric in task.mean_with:
            _metric(f"{at}.mean_with", replace(task, metric=metric), metrics)
        tasks[column] = replace(task, task=name, metric=_metric(f"{at}.metric", task, metrics))
        if task.metric is None:  # one that is named was checked with the command line
            tasks[column].refuse_upside_down(column)
        if (other := sources.setdefault(name, task.task)) != task.task:
            raise ValueError(f"{at}.task={task.task} has the name {name}, as {other} has; rename its task:")
    files = {name: source for name, source in sources.items() if name != source}
    refuse_settings(config, manager)
    return Columns(replace(config, tasks=tasks), files)


def task_manager(
    tasks: Iterable[str], rows: Mapping[str, str] | None = None, include_path: str | None = None
) -> TaskManager:
    """Knows `tasks`; lm-eval's own 13 000 task files take seconds to index, so only when they are asked for.

    `rows` reach the functions that make a task's documents, by name. A name that is in the folder `include_path` and
    elsewhere is what it is there.
    """
    metadata = dict[str, Any](rows) if rows else None
    folders: list[str | Path] = [str(TASKS), *([include_path] if include_path else [])]
    manager = TaskManager(include_path=folders, include_defaults=False, metadata=metadata)
    if not set(reached(tasks, manager)) <= set(manager.all_tasks):
        know_also(manager, lm_evals_index())
    return manager


def manager_for(config: EvaluateConfig, rows: Mapping[str, str] | None = None) -> TaskManager:
    """Knows every task of lm-eval that a column names; those in files of the user's are loaded from there.

    With `config.data_dir` their rows are read there. Raises `ValueError` for code that is not trusted, and for packages
    that a task or the backend needs and that are not installed.
    """
    require_backend(config)
    judged = isinstance(config, JudgedConfig)
    named = {t.task for t in config.tasks.values() if not (t.file or judged)}
    manager = task_manager(named, rows, config.include_path)
    require_packages(leaves(named, manager))
    if not (config.trust_task_code or judged):
        refuse_code(config, manager)
    if config.data_dir is not None:
        read_locally(named, Path(config.data_dir), manager)
    return manager


def require_items(config: EvaluateConfig, manager: TaskManager) -> None:
    """Fetch the items of lm-eval's own tasks, or look at those of `config.data_dir`.

    Raises `ValueError` naming the tasks for what cannot be had, and file, row and field of what cannot be read.
    """
    if isinstance(config, JudgedConfig):
        return
    random.seed(config.seed)  # as `simple_evaluate` does: a task may shuffle its choices while it is loaded
    for task in config.tasks.values() if config.data_dir is not None else ():
        for leaf in _foreign([task], manager):
            require_rows(leaf, manager, task.num_fewshot, config)
    foreign = _foreign(config.tasks.values(), manager) if config.data_dir is None else []
    for leaf in [leaf for leaf in foreign if is_included(leaf, manager)]:
        require_included(leaf, manager)
        foreign.remove(leaf)
    if not foreign:
        return
    asked = ", ".join(sorted({t.task for t in config.tasks.values() if _foreign([t], manager)}))
    try:
        manager.load(foreign)
    except ModuleNotFoundError as error:
        raise lacking(f"one of lm-eval's tasks {asked}", error) from None
    except (OSError, ValueError, ImportError) as error:
        what = f"the items of one of {asked}"
        instead = "run it once where the hub can be reached, or choose evaluate=demo or tasks of your own"
        raise unavailable(what, "datasets", error, instead) from None


def texts_of_items(config: EvaluateConfig, manager: TaskManager) -> dict[str, set[str]]:
    """Column -> every text in the items of its task, of which one is the question; of held-out rows, which are another
    stage's, there are none, nor of questions that a judge is asked about."""
    if isinstance(config, JudgedConfig):
        return {}
    random.seed(config.seed)  # as `require_items` does
    tasks = {column: task for column, task in config.tasks.items() if not task.rows}
    texts = {task.task: _texts_of(task, manager) for task in {t.task: t for t in tasks.values()}.values()}
    return {column: texts[task.task] for column, task in tasks.items()}


def _texts_of(task: TaskConfig, manager: TaskManager) -> set[str]:
    names = [task.task] if task.file else leaves([task.task], manager)
    items = (doc for loaded in manager.load(names)["tasks"].values() for doc in loaded.eval_docs)
    return {text.strip() for doc in items for text in _texts(doc)}


def _texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            yield from (text for inner in value.values() for text in _texts(inner))
        case list():
            yield from (text for inner in value for text in _texts(inner))


def _foreign(tasks: Iterable[TaskConfig], manager: TaskManager) -> list[str]:
    """The single tasks of columns that are none of PAFT's own."""
    own = {path.stem for path in TASKS.glob("*.yaml")}
    return [leaf for leaf in leaves([t.task for t in tasks if not t.file], manager) if leaf not in own]


def _refuse_several(at: str, task: TaskConfig, manager: TaskManager) -> None:
    """Refuse a name that is none of lm-eval's, or of several tasks without how to count them."""
    several = {*manager.all_groups, *manager.all_tags}
    if task.task not in manager.all_tasks:
        near = ", ".join(get_close_matches(task.task, manager.all_tasks)) or "lm-eval ls tasks lists them"
        raise ValueError(
            f"{at}.task={task.task} is no task of lm-eval or PAFT; near it: {near}. "
            f"A task of your own is the path of its file, which ends in .yaml{unreadable(manager)}"
        )
    if task.task in manager.all_tags:
        raise ValueError(f"{at}.task={task.task} is a tag of several tasks; give each a column of its own")
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


# --- metrics -----------------------------------------------------------------------------------------


def _known_metrics(task: TaskConfig, manager: TaskManager) -> list[str]:
    """The metrics of a task, or of any member of a group; empty where its file does not tell."""
    if task.mean_over is None:
        return metric_keys(manager.task_index[task.task].cfg or {})
    members = [name for name in manager.all_subtasks if name.startswith(task.mean_over)]
    each = [metric_keys(manager.task_index[name].cfg or {}) for name in members]
    return list(dict.fromkeys(key for keys in each for key in keys)) if all(each) else []


def metric_keys(task: Mapping[str, Any]) -> list[str]:
    """`metric,filter` of every metric under every filter, in the order of the task's file; empty where it has none."""
    metrics = [m.get("metric") for m in task.get("metric_list") or []]
    if not metrics and "class" not in task:
        metrics = list(DEFAULT_METRIC_REGISTRY.get(task.get("output_type") or "generate_until", []))
    # a function counts under its own name
    names = [str(getattr(m, "__name__", m)).rpartition(".")[2] for m in metrics if m]
    filters = [f["name"] for f in task.get("filter_list") or []] or ["none"]
    return [f"{name},{filter_name}" for name in names for filter_name in filters]


def _metric(key: str, task: TaskConfig, metrics: list[str]) -> str:
    """The metric a column asks for under `key`, or the first there is."""
    if task.metric is None:
        if not metrics:
            raise ValueError(
                f"{key} must be given, as acc,none: lm-eval does not say which metrics {task.task} has"
            )
        return metrics[0]
    if metrics and task.metric not in metrics:
        near = get_close_matches(task.metric, metrics, n=1, cutoff=0.3)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"{key}={task.metric} is no metric of {task.task}, which has {' '.join(map(repr, metrics))}{meant}"
        )
    return task.metric


def _in_file(at: str, file: Path, manager: TaskManager) -> tuple[str, list[str]]:
    """The name and the metrics of the task in a file of the user's, loaded with its data."""
    try:
        # a group would load its tasks, whoever's they are
        loaded = None if "group" in settings_of(file) else manager.load([str(file)])
    except Exception as error:  # whatever a file of the user's and its functions raise
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{at}.task={file} cannot be loaded by lm-eval: {reason}") from error
    if loaded is None:
        raise ValueError(f"{at}.task={file} must be one task, got a group; give each of its tasks a column")
    ((name, task),) = loaded["tasks"].items()
    settings = task.config
    return name, metric_keys(
        {k: getattr(settings, k, None) for k in ("metric_list", "filter_list", "output_type")}
    )
