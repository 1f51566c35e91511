"""What a task file of lm-eval refers to, read as lm-eval reads it, without running anything."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


@dataclass
class TaskFile:
    """A YAML file of a task, a group or what tasks include."""

    path: Path
    content: dict[str, Any] = field(default_factory=dict)
    functions: list[str] = field(default_factory=list)
    """Its `!function`s, as `utils.process_docs`."""

    @property
    def includes(self) -> list[Path]:
        """The YAML files that it includes."""
        named = self.content.get("include") or []
        return [self.path.parent / name for name in ([named] if isinstance(named, str) else named)]

    @property
    def modules(self) -> list[Path]:
        """The Python files beside it that its functions are in."""
        names = dict.fromkeys(function.rpartition(".")[0] for function in self.functions)
        beside = [self.path.parent.joinpath(*name.split(".")).with_suffix(".py") for name in names if name]
        return [path for path in beside if path.is_file()]

    @property
    def data(self) -> list[Path]:
        """The files of this disk that it reads its items from; paths are relative to the folder of the run."""
        settings = self.content.get("dataset_kwargs")
        named = _texts(settings.get("data_files")) if isinstance(settings, dict) else []
        return [Path(name) for name in named if Path(name).is_file()]


def read_task_file(path: Path) -> TaskFile:
    """What is in a YAML file. Raises `ValueError` naming one that cannot be read."""
    file = TaskFile(path)

    class Loader(yaml.SafeLoader):
        pass

    def function(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
        file.functions.append(str(loader.construct_scalar(node)))
        return file.functions[-1]

    Loader.add_constructor("!function", function)
    try:
        content = yaml.load(path.read_bytes(), Loader)
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as a task of lm-eval: {' '.join(str(error).split())}"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a task's settings, got {type(content).__name__}")
    file.content = content
    return file


def with_included(path: Path) -> list[TaskFile]:
    """A YAML file and those it includes, however deep, each once. Raises `ValueError` for one that cannot be read."""
    found: dict[Path, TaskFile] = {}
    waiting = [path]
    while waiting:
        here = waiting.pop(0)
        if here.resolve() not in found:
            found[here.resolve()] = read_task_file(here)
            waiting += found[here.resolve()].includes
    return list(found.values())


def settings_of(path: Path, within: tuple[Path, ...] = ()) -> dict[str, Any]:
    """What lm-eval takes a YAML file to say, with what it includes. Raises `ValueError` for one that cannot be read."""
    here = path.resolve()
    if here in within:
        raise ValueError(f"{path} includes itself")
    file, merged = read_task_file(path), dict[str, Any]()
    for included in file.includes:
        merged |= settings_of(included, (*within, here))
    return merged | {name: value for name, value in file.content.items() if name != "include"}


def _texts(value: Any) -> Iterator[str]:
    """Every text in nested lists and mappings."""
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(inner)
