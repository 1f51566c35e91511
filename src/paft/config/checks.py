"""The shape of a range error, and which fields no stage key holds."""

import math
import re
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, field, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

from omegaconf import MISSING

UNLESS_DEFAULT = {"identity": "unless default"}
"""Of a field that older keys do not know of: it is part of a key only where it is set."""


def identifies(option: "Field[Any]", value: object) -> bool:
    """Whether a field with this value is part of what a result is known by: it can change it."""
    rule = option.metadata.get("identity", True)
    return value != default_of(option) if rule == "unless default" else bool(rule)


def default_of(option: "Field[Any]") -> Any:
    """What a field holds where nothing is given."""
    return option.default if option.default_factory is NO_DEFAULT else option.default_factory()


def require(ok: bool, name: str, value: object, allowed: str) -> None:
    """Raise the one shape of range error: the key, what is allowed, what was given."""
    if not ok:
        raise ValueError(f"{name} must be {allowed}, got {value!r:.200}")


def require_sound(config: Any, at: str = "") -> None:
    """Raise `ValueError` naming the setting, its path after `at`, for a value that no field means, whatever its range:
    a number that is not finite or needs more than 64 bits, or text that no file or process can be given."""
    match config:
        case float():
            require(math.isfinite(config), at, config, "a finite number")
        case int():
            require(-(2**63) <= config < 2**63, at, config, "a number of at most 64 bits")
        case str():
            allowed = "text without the character NUL or half a surrogate pair"
            require(not re.search("[\0\ud800-\udfff]", config), at, config, allowed)
        case list():
            for item in config:
                require_sound(item, at)
        case dict():
            for name, item in config.items():
                require_sound(name, at)
                require_sound(item, f"{at}.{name}".lstrip("."))
        case _ if is_dataclass(config):
            for f in fields(config):
                name, value = f"{at}.{f.name}".lstrip("."), getattr(config, f.name)
                # OmegaConf lets a list into list[str]
                nested = isinstance(value, list) and any(isinstance(item, list | dict) for item in value)
                require(not nested, name, value, "a list of plain values")
                require_sound(value, name)


TYPES: dict[str, type] = {}
"""Name -> config class, of every one there is."""


class Typed:
    """What every config is: a field holds what it states, however it was set.

    Text that is the value of a member stands for it, as in YAML: `Linear(norm="branches")` is `Norm.branches`, and is
    not taken for text that no code asks about. Anything else of another type is a `ValueError`.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        TYPES[cls.__name__] = cls

    def __setattr__(self, name: str, value: Any) -> None:
        schema: Any = type(self)
        hint = _hints(schema).get(name, Any)
        super().__setattr__(name, as_stated(f"{schema.__name__}.{name}", hint, value))


class Entry(Typed):
    """A config that is a choice of a group: a class given a `name` is known by it on the command line and everywhere.

    Each group's base class has the `entries` that its named classes join as they are defined.
    """

    entries: ClassVar[dict[str, Any]]
    """Name -> class, in the order of definition."""
    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    """As tables and pictures write it."""
    source: ClassVar[str] = ""
    """The paper or code that defines it."""

    def __init_subclass__(cls, *, name: str = "", title: str = "", source: str = "", **options: Any) -> None:
        super().__init_subclass__(**options)
        if name:
            cls.name, cls.title, cls.source = name, title or cls.title_of(name), source
            cls.entries[name] = cls

    @staticmethod
    def title_of(name: str) -> str:
        """The title of an entry that gives none."""
        return name.replace("_", " ").title()


@cache
def _hints(schema: Any) -> dict[str, Any]:
    return get_type_hints(schema)


def as_stated(name: str, hint: Any, value: Any) -> Any:
    """`value` as a field that states the type `hint` holds it. Raises `ValueError` for one that it cannot hold."""
    if isinstance(value, str) and value == MISSING:
        return value
    kinds = [kind for kind in (hint, *get_args(hint)) if isinstance(kind, type) and issubclass(kind, Enum)]
    if kinds and not isinstance(value, kinds[0]) and not has_type(value, hint):
        allowed = [member.value for member in kinds[0]]
        require(value in allowed, name, value, f"one of {allowed}")
        return kinds[0](value)
    require(has_type(value, hint), name, value, f"of type {getattr(hint, '__name__', hint)}")
    return value


def has_type(value: Any, hint: Any) -> bool:
    """Whether a field that states the type `hint` may hold `value`; an int may stand for a float."""
    if hint is Any:
        return True
    arguments = get_args(hint)
    if get_origin(hint) is list:
        return isinstance(value, list) and all(has_type(item, arguments[0]) for item in value)
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(has_type(item, arguments[1]) for item in value.values())
    if arguments:
        return any(has_type(value, kind) for kind in arguments)
    if isinstance(value, int):
        return hint is float or hint is type(value)
    return isinstance(value, hint)


def incidental(default: Any) -> Any:
    """A field that cannot change a result, hence no part of any stage key."""
    return field(default=default, metadata={"identity": False})


def require_pinned(name: str, repo: str, revision: str) -> None:
    """Branches and tags move; a stage key must not."""
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ValueError(
            f"{name} must be a 40-digit commit of {repo}, got {revision!r}; "
            f"branches move. Copy one from huggingface.co/{repo}/commits"
        )
