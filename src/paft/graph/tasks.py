"""What tasks and rows of the user's are known by in a stage key: the content of their files, not where they lie."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from paft.config import EvaluateConfig
from paft.files.fingerprint import file_sha256, tree_sha256

INCLUDE = re.compile(r"""^include:\s*["']?([^"'\s#]+)""", re.MULTILINE)
FUNCTION = re.compile(r"""!function\s+["']?([\w.]+)\.\w+""")


def with_fingerprints(evaluate: EvaluateConfig) -> EvaluateConfig:
    """Every task that is a file, and the folder of rows, with its sha256. Raises `ValueError` for what is not there."""
    from_files = {c: replace(t, sha256=task_sha256(t.file)) for c, t in evaluate.tasks.items() if t.file}
    if from_files:
        evaluate = replace(evaluate, tasks=evaluate.tasks | from_files)
    if evaluate.data_dir is not None:
        evaluate = replace(evaluate, data_sha256=tree_sha256(Path(evaluate.data_dir), "evaluate.data_dir"))
    return evaluate


def refuse_changed_files(evaluate: EvaluateConfig) -> None:
    """Raise `ValueError` where tasks or rows are not those that the stage's key was made from."""
    if with_fingerprints(evaluate) != evaluate:
        raise ValueError(
            "files of evaluate.tasks or evaluate.data_dir changed after this run was planned; nothing was scored with "
            "them: put the old files back, or give the same command again to run with the new ones"
        )


def task_sha256(file: Path) -> str:
    """Hex sha256 over a task's YAML file, those it includes, and the Python files of its `!function`s beside it.

    Data that the task reads is not part of it.
    """
    digests = dict.fromkeys(file_sha256(path) for path in _files(file, set()))
    return hashlib.sha256("\0".join(digests).encode()).hexdigest()


def _files(file: Path, seen: set[Path]) -> Iterator[Path]:
    """The file and what it refers to, in order; a reference to no file is for lm-eval to refuse."""
    seen.add(file.resolve())
    yield file
    if file.suffix == ".py" or not file.is_file():
        return
    text, folder = file.read_text(errors="replace"), file.parent
    named = [folder / name for name in INCLUDE.findall(text)]
    named += [folder.joinpath(*name.split(".")).with_suffix(".py") for name in FUNCTION.findall(text)]
    for path in named:
        if path.is_file() and path.resolve() not in seen:
            yield from _files(path, seen)
