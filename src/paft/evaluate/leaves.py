"""The tasks that a name of lm-eval's stands for: a group's and a tag's, however deep; itself where it is one."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lm_eval.tasks import TaskManager


def leaves(names: Iterable[str], manager: TaskManager) -> list[str]:
    """Every single task among `names` and in their groups and tags, once; loads none."""
    return list(dict.fromkeys(leaf for name in names for leaf in _of(name, manager)))


def _of(name: str, manager: TaskManager) -> Iterator[str]:
    entry = manager.task_index.get(name)
    match entry.kind.name if entry else "":
        case "TAG":
            yield from sorted(entry.tags)
        case "GROUP":
            yield from _members(entry.cfg or {}, manager)
        case "TASK" | "PY_TASK":
            yield name


def _members(group: Mapping[str, Any], manager: TaskManager) -> Iterator[str]:
    listed = group.get("task") or []
    for member in [listed] if isinstance(listed, str) else listed:
        name = member if isinstance(member, str) else member.get("group") or member.get("task")
        if isinstance(member, dict) and name not in manager.task_index:
            yield from _members(member, manager)  # a group that is defined where it is used
        else:
            yield from _of(str(name), manager)
