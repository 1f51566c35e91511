"""The tasks that a name of lm-eval's stands for: a group's and a tag's, however deep; itself where it is one."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lm_eval.tasks import TaskManager


def leaves(names: Iterable[str], manager: TaskManager) -> list[str]:
    """Every single task among `names` and in their groups and tags, once; loads none."""
    return [name for name in reached(names, manager) if _kind(name, manager) not in ("TAG", "GROUP")]


def reached(names: Iterable[str], manager: TaskManager) -> list[str]:
    """`names` and all that is in their groups and tags, groups and tags too, once; loads none."""
    return list(dict.fromkeys(found for name in names for found in _of(name, manager)))


def _kind(name: str, manager: TaskManager) -> str:
    return manager.task_index[name].kind.name if name in manager.task_index else ""


def _of(name: str, manager: TaskManager) -> Iterator[str]:
    yield name
    match _kind(name, manager):
        case "TAG":
            yield from sorted(manager.task_index[name].tags)
        case "GROUP":
            yield from _members(manager.task_index[name].cfg or {}, manager)


def _members(group: Mapping[str, Any], manager: TaskManager) -> Iterator[str]:
    listed = group.get("task") or []
    for member in [listed] if isinstance(listed, str) else listed:
        name = member if isinstance(member, str) else member.get("group") or member.get("task")
        if isinstance(member, dict) and "group" in member and name not in manager.task_index:
            yield from _members(member, manager)  # a group that is defined where it is used
        else:
            yield from _of(str(name), manager)
