"""What tasks and rows of the user's are known by in a stage key: the content of their files, not where they lie."""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import paft
from paft.config import EvaluateConfig
from paft.files.fingerprint import file_sha256, tree_sha256
from paft.graph.task_files import read_task_file, with_included

TASKS = Path(paft.__file__).parent / "evaluate" / "tasks"
"""Every YAML file in here is a task that a column may name."""
SHIPPED = (
    "paft_answers",
    "paft_gsm8k",
    "paft_gsm8k_choice",
    "paft_honesty",
    "paft_mmlu_dev",
    "paft_preference",
    "paft_tool_call",
)
"""PAFT's own, whose content no key holds: the version in the file tells when it changes."""
INCLUDE = re.compile(r"""^include:\s*["']?([^"'\s#]+)""", re.MULTILINE)
FUNCTION = re.compile(r"""!function\s+["']?([\w.]+)\.\w+""")


def with_fingerprints(evaluate: EvaluateConfig) -> EvaluateConfig:
    """Every task that is a file, and the folders of rows and of tasks, with their sha256.

    Raises `ValueError` for what is not there.
    """
    added = _added()
    files = {column: task.file or added.get(task.task) for column, task in evaluate.tasks.items()}
    from_files = {
        c: replace(evaluate.tasks[c], sha256=task_sha256(file)) for c, file in files.items() if file
    }
    if from_files:
        evaluate = replace(evaluate, tasks=evaluate.tasks | from_files)
    if evaluate.data_dir is not None:
        evaluate = replace(evaluate, data_sha256=tree_sha256(Path(evaluate.data_dir), "evaluate.data_dir"))
    if evaluate.include_path is not None:
        evaluate = replace(evaluate, include_sha256=included_sha256(Path(evaluate.include_path)))
    return evaluate


def _added() -> dict[str, Path]:
    """Name -> file of the tasks that were put beside PAFT's own."""
    others = sorted(path for path in TASKS.glob("*.yaml") if path.stem not in SHIPPED)
    return {str(read_task_file(path).content.get("task")): path for path in others}


def included_sha256(folder: Path) -> str:
    """Hex sha256 over a folder of task files, with what they include, run and read outside of it.

    Raises `ValueError` for a path that is no folder.
    """
    digests = [tree_sha256(folder, "evaluate.include_path")]
    inside = folder.resolve()
    for path in sorted(folder.rglob("*.yaml")):
        try:
            files = with_included(path)
        except ValueError:
            continue  # no task, or one that lm-eval passes over
        used = [other for file in files for other in (file.path, *file.modules, *file.data)]
        digests += [file_sha256(other) for other in used if not other.resolve().is_relative_to(inside)]
    return hashlib.sha256("\0".join(dict.fromkeys(digests)).encode()).hexdigest()


def refuse_changed_files(evaluate: EvaluateConfig) -> None:
    """Raise `ValueError` where tasks or rows are not those that the stage's key was made from."""
    if with_fingerprints(evaluate) != evaluate:
        raise ValueError(
            "files of evaluate.tasks, evaluate.include_path or evaluate.data_dir changed after this run was planned; "
            "nothing was scored with them: put the old ones back, or give the same command again to run with the new"
        )


def task_sha256(file: Path) -> str:
    """Hex sha256 over a task's YAML file, those it includes, the Python files of its `!function`s beside it, and the
    files of this disk that it reads its items from.

    What belongs to a file is found by patterns first, as keys are made of it; then comes what they miss of what lm-eval
    reads: lists of includes, tags in full, links, data.
    """
    digests = dict.fromkeys(file_sha256(path) for path in _files(file, set()))
    with suppress(ValueError):  # no task, which is refused when it is loaded
        for read in with_included(file.resolve()):
            digests |= dict.fromkeys(file_sha256(path) for path in (read.path, *read.modules, *read.data))
    return hashlib.sha256("\0".join(digests).encode()).hexdigest()


def _files(file: Path, seen: set[Path]) -> Iterator[Path]:
    """The file and what it refers to, in order; a reference to no file is for lm-eval to refuse."""
    seen.add(file.resolve())
    yield file
    if file.suffix == ".py" or not os.path.isfile(file):
        return
    text, folder = file.read_text(errors="replace"), file.parent
    named = [folder / name for name in INCLUDE.findall(text)]
    named += [folder.joinpath(*name.split(".")).with_suffix(".py") for name in FUNCTION.findall(text)]
    for path in named:
        if path.is_file() and path.resolve() not in seen:
            yield from _files(path, seen)
