"""The choices of each group in `conf/`, and which of them have a setting; importing this module loads no torch."""

import re
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

from paft.config import SCHEMAS
from paft.merge.methods import METHODS
from paft.objectives import OBJECTIVES

CONF = Path(__file__).parents[3] / "conf"
ENTRIES: dict[str, dict[str, type]] = {"merge": dict(METHODS), "preference": dict(OBJECTIVES)}
"""Group -> choices that need no file in `conf/`, name -> type."""
TYPES: dict[str, type] = SCHEMAS | ENTRIES["merge"] | ENTRIES["preference"]
"""Name in a YAML file's `/schema@_here_` -> type."""
SCHEMA = re.compile(r"/schema@_here_: *(\w+)")
BASE = re.compile(r"defaults: *\[(\w+)")
"""A file that only changes values of another choice of its group names that one first."""


def groups() -> list[str]:
    """The groups whose choices have typed settings, by name."""
    folders = sorted(path.name for path in CONF.iterdir() if path.is_dir())
    return [name for name in folders if any(schema is not None for schema in schemas(name).values())]


def schemas(group: str) -> dict[str, type | None]:
    """Choice -> the dataclass that closes it; None for a file without one, as an experiment."""
    folder = CONF / group
    return ENTRIES.get(group, {}) | {path.stem: _schema(path) for path in sorted(folder.glob("*.yaml"))}


def with_setting(key: str) -> list[str]:
    """The choices, as `merge=ties`, of a key's group that have the setting; empty where the key is of no group."""
    group, _, rest = key.partition(".")
    return [f"{group}={name}" for name, schema in schemas(group).items() if schema and field_at(schema, rest)]


def field_at(schema: type, path: str) -> bool:
    """Whether a dataclass has the setting at a path of names with dots between."""
    name, _, rest = path.partition(".")
    hints = get_type_hints(schema) if is_dataclass(schema) else {}
    if name not in hints or not rest:
        return name in hints
    return any(field_at(kind, rest) for kind in inner(hints[name]))


def inner(hint: Any) -> list[type]:
    """The dataclasses a type is made of: itself, or what an Optional or a dict holds."""
    kinds = (hint, *get_args(hint))
    return [kind for kind in kinds if isinstance(kind, type) and is_dataclass(kind)]


@cache
def _schema(path: Path) -> type | None:
    text = path.read_text(encoding="utf-8")
    if match := SCHEMA.search(text):
        return TYPES[match[1]]
    base = BASE.search(text)
    return _schema(path.with_name(f"{base[1]}.yaml")) if base and base[1] != path.stem else None
