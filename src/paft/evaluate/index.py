"""What lm-eval's own 14 000 task files hold, which it takes seconds to read: kept as one file of the user's cache."""

import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import lm_eval.tasks
from lm_eval.tasks import TaskManager

from paft.files.cache import cache_folder
from paft.files.fingerprint import text_digest
from paft.files.jsonfile import read_object, write_json
from paft.private import task_entry

TASKS = Path(lm_eval.tasks.__file__).parent


@cache
def lm_evals_index() -> Mapping[str, Any]:
    """Name -> entry of every task, group and tag of lm-eval's own, as its `TaskManager` has them.

    A file of its folder that is new, gone or changed makes the index anew. A cache that cannot be written is none.
    """
    state = _state()
    file = cache_folder("tasks") / f"{text_digest(str(TASKS))}.json"
    try:
        kept = read_object(file)
        if kept["state"] == state:
            return {name: task_entry(name, *values) for name, values in kept["entries"].items()}
    except (ValueError, LookupError, TypeError, AttributeError):
        pass  # absent, or not what this version writes
    index = TaskManager(include_path=str(TASKS), include_defaults=False).task_index
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"state": state, "entries": {name: _values(entry) for name, entry in index.items()}})
    except (OSError, ValueError, TypeError):
        pass  # no room, or no right to write, or something in it that JSON has not
    return index


def _values(entry: Any) -> list[Any]:
    path = None if entry.yaml_path is None else str(entry.yaml_path)
    return [entry.kind.name, path, entry.cfg, sorted(entry.tags)]


def _state() -> str:
    """Of name, size and time of change of every file that the index is made of."""
    lines = (f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in _files())
    return text_digest("\n".join(lines))


def _files() -> Iterator[tuple[str, os.stat_result]]:
    for folder, folders, names in os.walk(TASKS):
        folders.sort()
        for path in (os.path.join(folder, name) for name in sorted(names) if not name.endswith(".pyc")):
            yield path, os.stat(path)
