"""Parameters in a mergekit YAML: one value, a gradient along the layers, or a list of values for names of tensors.

A setting is what YAML has under a parameter's name. Settings of a narrower scope come first: of a model in a slice, of
the slice, of the file.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

Settings = Mapping[str, Any]
"""Parameter -> its setting."""
Value = TypeVar("Value", bool, float)
WORDS = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


@dataclass(frozen=True)
class Place:
    """A tensor, and how far along its slice its layer is: 0 is the first, 1 the last. Outside layers it is 0."""

    tensor: str
    along: float = 0.0


def resolve(
    name: str, scopes: Iterable[Settings], place: Place, kind: Callable[[str, Any], Value]
) -> Value | None:
    """The value of a parameter for one tensor, None where no scope sets it; `kind` is `number` or `truth`."""
    for scope in scopes:
        if name in scope and (value := _value(name, scope[name], place, kind)) is not None:
            return value
    return None


def _value(name: str, setting: Any, place: Place, kind: Callable[[str, Any], Value]) -> Value | None:
    """Of a list with filters the first that is part of the tensor's name, as in mergekit."""
    if isinstance(setting, Mapping):
        setting = [setting]
    if not isinstance(setting, list):
        return kind(name, setting)
    if not any(isinstance(item, Mapping) for item in setting):
        return _along([kind(name, item) for item in setting], place.along) if setting else None
    for condition in setting:
        text = _filter(name, condition)
        if text in (None, "*") or str(text) in place.tensor:
            return _value(name, condition["value"], place, kind)
    return None


def _filter(name: str, condition: Any) -> str | None:
    text = condition.get("filter") if isinstance(condition, Mapping) else ()
    if not isinstance(text, str | None) or not {"value"} <= condition.keys() <= {"value", "filter"}:
        raise ValueError(
            f"parameter {name} has {condition!r:.100} in its list; each must be {{filter: part of a name, value: ...}}"
        )
    return text


def _along(values: list[Value], t: float) -> Value:
    """The point at `t` of values that stand evenly from 0 to 1; of truths the last one reached."""
    position = t * (len(values) - 1)
    before = int(position)
    if isinstance(values[0], bool):
        return values[before]
    after, share = min(len(values) - 1, before + 1), position - before
    return (1 - share) * values[before] + share * values[after]


def number(name: str, value: Any) -> float:
    """A finite number; YAML reads 1e-4 as text. Raises `ValueError` for anything else."""
    try:
        converted = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        converted = math.nan
    if not math.isfinite(converted):
        raise ValueError(
            f"parameter {name} must be a number, or a list of them from first to last layer, got {value!r:.100}"
        )
    return converted


def truth(name: str, value: Any) -> bool:
    """True or false, as YAML or mergekit writes them."""
    if (word := str(value).lower()) not in WORDS:
        raise ValueError(f"parameter {name} must be true or false, got {value!r:.100}")
    return WORDS[word]
