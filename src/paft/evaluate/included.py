"""Tasks of the user's, in `evaluate.include_path` or a file of their own, and whether their code may run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.api.registry import METRIC_REGISTRY
from lm_eval.tasks import TaskManager

from paft.config import EvaluateConfig, TaskConfig
from paft.evaluate.leaves import reached
from paft.evaluate.local import said
from paft.graph.task_files import TaskFile, read_task_file, with_included
from paft.graph.tasks import TASKS

TRUSTED = (Path(lm_eval.__file__).parent.resolve(), TASKS.resolve())
"""Folders whose code may run."""


def is_included(name: str, manager: TaskManager) -> bool:
    """Whether a task, group or tag is the user's."""
    file = _file_of(name, manager)
    return file is not None and not _is_trusted(file)


def refuse_code(config: EvaluateConfig, manager: TaskManager) -> None:
    """Raise `ValueError` naming the first Python function, or metric of the hub's, that a column would run; and a
    task's own file that nobody can read."""
    for column, task in config.tasks.items():
        at = f"evaluate.tasks.{column}.task={task.task}"
        for file in _files_of(at, task, manager, named=config.include_path is not None):
            if not _is_trusted(file.path) and (code := _code(file)):
                raise ValueError(
                    f"{at}: {file.path} runs {code}; read it, and if it may run set evaluate.trust_task_code=true"
                )


def _files_of(at: str, task: TaskConfig, manager: TaskManager, *, named: bool) -> Iterator[TaskFile]:
    """The files of a column that are the user's, with what they include; of a task that is `named`, only where there is
    a folder of the user's."""
    if task.file:
        try:
            yield from with_included(task.file)
        except ValueError as error:
            raise ValueError(f"{at} cannot be loaded by lm-eval: {error}") from None
        return
    for name in reached([task.task], manager) if named else ():
        file = _file_of(name, manager)
        if file and is_included(name, manager):
            yield from with_included(file)


def _code(file: TaskFile) -> str | None:
    """What a file runs that is not lm-eval's."""
    if file.functions:
        return f"the Python function {file.functions[0]}"
    settings: dict[str, Any] = file.content
    for metric in settings.get("metric_list") or ():
        name = metric.get("metric") if isinstance(metric, dict) else None
        fetched = isinstance(metric, dict) and (metric.get("hf_evaluate") or name not in METRIC_REGISTRY)
        if fetched and not settings.get("process_results"):
            return f"the metric {name}, which is code of the hub's and none of lm-eval's,"
    return None


def require_included(name: str, manager: TaskManager) -> None:
    """Raise `ValueError` with the reason for a task of the user's that lm-eval cannot load, with its items."""
    try:
        manager.load([name])
    except Exception as error:  # whatever a task's functions and templates raise
        file = _file_of(name, manager)
        raise ValueError(f"the task {name} of {file} cannot be loaded by lm-eval: {said(error)}") from error


def unreadable(manager: TaskManager) -> str:
    """What is to be said of task files that lm-eval passes over, where a task is not found; empty if there are none."""
    named: Any = manager.include_path or []
    reasons = []
    for folder in [named] if isinstance(named, str | Path) else named:
        for path in sorted(Path(folder).rglob("*.yaml")):
            try:
                read_task_file(path)
            except ValueError as error:
                reasons.append(str(error))
    return f"; {reasons[0]}" if reasons else ""


def _file_of(name: str, manager: TaskManager) -> Path | None:
    entry = manager.task_index.get(name)
    return entry.yaml_path if entry else None


def _is_trusted(file: Path) -> bool:
    return any(file.resolve().is_relative_to(folder) for folder in TRUSTED)
