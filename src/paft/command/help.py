"""`python train.py --help TOPIC`: the keys of a group, of one choice of it or of one setting, from the typed config.

A topic is `merge`, `merge=ties`, `sft.l1`, `trainer.devices`, `lambda`. Importing this module loads no torch.
"""

import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import fields
from difflib import get_close_matches
from enum import Enum
from typing import Any, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf

from paft.command.choices import BASE, CONF, inner, schemas
from paft.command.meanings import allowed, meaning, own_doc, type_name
from paft.config import L1Config, RunConfig

HELP = ("--help", "-h")
INDENT = " " * 6


def topics(words: Sequence[str]) -> list[str]:
    """The words behind `--help`; empty where the whole help is asked for, or none."""
    place = next((i for i, word in enumerate(words) if word in HELP), len(words))
    return [word for word in words[place + 1 :] if not word.startswith("-")]


def show_help(topic: str) -> None:
    """Print what there is to know of a topic. Raises `ValueError` naming those there are."""
    try:
        print("\n".join(_lines(topic)), flush=True)
    except BrokenPipeError:  # `| head` has read enough; what is flushed at the end must not fail either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _lines(topic: str) -> Iterator[str]:
    key, _, choice = topic.partition("=")
    if key == "lambda":
        yield from _setting(
            "lambda", L1Config, "weight", OmegaConf.select(OmegaConf.load(CONF / "train.yaml"), "lambda")
        )
        return
    choice, _, behind = choice.partition(".")
    group, _, path = key.partition(".")
    path = path or behind
    if group not in (names := [f.name for f in fields(RunConfig)]):
        raise ValueError(_unknown(topic, ["lambda", *names]))
    if not choice and not path and len(schemas := _schemas(group)) > 0:
        yield from _group(group, schemas)
        return
    at, place = _at(group, path, choice, topic)
    if isinstance(place, type):
        yield from _keys(at, place, _given(group, choice), path)
    else:
        yield from _one(at, place, _given(group, choice))


def _schemas(group: str) -> dict[str, type]:
    return (
        {name: schema for name, schema in schemas(group).items() if schema} if (CONF / group).is_dir() else {}
    )


def _unknown(topic: str, names: Sequence[str]) -> str:
    near = get_close_matches(topic, names, n=1)
    guess = f"; near it: {near[0]}" if near else ""
    return f"there is no help on {topic!r}{guess}; there is on {', '.join(names)}"


def _group(group: str, schemas: dict[str, type]) -> Iterator[str]:
    """The choices of a group, the keys that all of them have, and those that only some have."""
    yield f"{group}: choose one with {group}=NAME; `--help {group}=NAME` has its own values"
    for name, schema in schemas.items():
        yield f"  {group}={name:<16} {_about(group, name, schema)}"
    types = list(dict.fromkeys(schemas.values()))
    yield ""
    for name in dict.fromkeys(f.name for schema in types for f in fields(schema)):
        having = [schema for schema in types if name in _names(schema)]
        owners = [choice for choice, schema in schemas.items() if schema in having]
        only = "" if len(having) == len(types) else f"  (of {', '.join(owners)})"
        yield from _setting(f"{group}.{name}{only}", having[0], name, _default(having[0], name))


def _about(group: str, name: str, schema: type) -> str:
    """The comment at the head of a choice's file, else what its type says of itself."""
    path = CONF / group / f"{name}.yaml"
    first = path.read_text(encoding="utf-8").splitlines()[0] if path.is_file() else ""
    return first.lstrip("# ") if first.startswith("#") else own_doc(schema)


def _at(group: str, path: str, choice: str, topic: str) -> tuple[str, Any]:
    """(key, dataclass) at a topic, or (key, (dataclass, field)) where it is one setting."""
    schemas = _schemas(group)
    if choice and choice not in schemas:
        raise ValueError(_unknown(topic, [f"{group}={name}" for name in schemas] or [group]))
    roots = [schemas[choice]] if choice else list(dict.fromkeys(schemas.values())) or [RunConfig]
    parts = path.split(".") if path else []
    start = "" if roots == [RunConfig] else group
    for root in roots:
        if (place := _follow(root, parts if start else [group, *parts], start)) is not None:
            return place
    raise ValueError(_unknown(topic, [f"{group}.{name}" for root in roots for name in _names(root)]))


def _follow(schema: type, parts: Sequence[str], at: str) -> tuple[str, Any] | None:
    """The dataclass or setting at the end of a path; None where there is none. Keys of a user's own are any name."""
    rest = list(parts)
    while rest:
        name = rest.pop(0)
        if name not in _names(schema):
            return None
        at = f"{at}.{name}".lstrip(".")
        hint = get_type_hints(schema)[name]
        if not (kinds := inner(hint)):
            return None if rest else (at, (schema, name))
        if get_origin(hint) is dict:
            at += f".{rest.pop(0) if rest else '<name>'}"
        schema = kinds[0]
    return at, schema


def _names(schema: type) -> list[str]:
    return [f.name for f in fields(schema)]


def _keys(at: str, schema: type, given: DictConfig, path: str) -> Iterator[str]:
    if about := own_doc(schema):
        yield from textwrap.wrap(f"{at}: {about}", _width())
        yield ""
    for name in _names(schema):
        yield from _setting(f"{at}.{name}", schema, name, _value(given, f"{path}.{name}".lstrip("."), schema))


def _one(at: str, place: tuple[type, str], given: DictConfig) -> Iterator[str]:
    schema, name = place
    yield from _setting(at, schema, name, _value(given, at.partition(".")[2] or at, schema))


def _value(given: DictConfig, path: str, schema: type) -> Any:
    """What the files give at a path, with references as they are written; else the field's own default."""
    node: Any = OmegaConf.to_container(given)
    for name in path.split("."):
        node = node.get(name) if isinstance(node, dict) else None
    return _default(schema, path.rpartition(".")[2]) if node is None else node


def _setting(key: str, schema: type, name: str, default: Any) -> Iterator[str]:
    """A key, what it may be, its default, and what it means."""
    kind = allowed(schema, name)
    facts = filter(None, (type_name(schema, name), kind, _shown(default)))
    nested = inner(get_type_hints(schema)[name])
    yield f"  {key}" + (f"  [{'; '.join(facts)}]" if not nested else f"  (`--help {key.split()[0]}`)")
    yield from textwrap.wrap(meaning(schema, name), _width(), initial_indent=INDENT, subsequent_indent=INDENT)


def _shown(value: Any) -> str:
    if value == "???":
        return "must be given"
    value = value.value if isinstance(value, Enum) else value
    return f"default {OmegaConf.to_yaml([value]).strip().removeprefix('- ') if _is_plain(value) else value}"


def _is_plain(value: Any) -> bool:
    """Whether YAML has a word of its own for it: null, true, false."""
    return value is None or isinstance(value, bool)


def _default(schema: type, name: str) -> Any:
    (option,) = (f for f in fields(schema) if f.name == name)
    return option.default_factory() if option.default_factory is not NO_DEFAULT else option.default


def _given(group: str, choice: str) -> DictConfig:
    """What the files in `conf/` give to the keys of a group, or of the root."""
    root = OmegaConf.load(CONF / "train.yaml")
    assert isinstance(root, DictConfig)
    if not (CONF / group).is_dir():
        return root[group] if isinstance(root.get(group), DictConfig) else root
    return _file(group, choice) if choice else OmegaConf.create()


def _file(group: str, choice: str) -> DictConfig:
    path = CONF / group / f"{choice}.yaml"
    if not path.is_file():
        return OmegaConf.create()
    base = BASE.search(path.read_text(encoding="utf-8"))
    under = _file(group, base[1]) if base else OmegaConf.create()
    merged = OmegaConf.merge(under, OmegaConf.load(path))
    assert isinstance(merged, DictConfig)
    return merged


def _width() -> int:
    return max(60, min(110, shutil.get_terminal_size((100, 20)).columns))
