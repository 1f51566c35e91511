"""What the code of a config class says of each field: its meaning and its range; importing this loads no torch."""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from itertools import pairwise
from typing import Any, get_args, get_type_hints

from paft.config import L1Config


def meaning(schema: type, name: str) -> str:
    """The docstring below a field, and what its type says of its choices; else that of its type, or nothing."""
    kinds = parts(schema, name)
    below = next((docs[name] for kind in schema.__mro__ if name in (docs := _docs(kind))), "")
    of_types = [own_doc(kind) for kind in kinds if not below or issubclass(kind, Enum)]
    return " ".join(filter(None, [below, *of_types]))


def allowed(schema: type, name: str) -> str:
    """What a field may be: its choices, else the words of the range check that names it; empty where it is free."""
    kinds = parts(schema, name)
    choices = [str(member.value) for kind in kinds if issubclass(kind, Enum) for member in kind]
    if choices:
        return " | ".join([*choices, *(["null"] * _may_be_null(schema, name))])
    if bool in kinds and str not in kinds:
        return "true | false"
    called = "lambda" if (schema, name) == (L1Config, "weight") else name  # its name at the root
    checks = (check for kind in reversed(schema.__mro__) for check in _checks(kind) if check[0] == called)
    return ", ".join(dict.fromkeys(text for _, text in checks))


def type_name(schema: type, name: str) -> str:
    """The type of a field in plain words, as `number or null`."""
    words = {int: "whole number", float: "number", str: "text", bool: "", list: "list", dict: "names"}
    kinds = parts(schema, name)
    said = [words.get(kind, "") for kind in kinds if not is_dataclass(kind)]
    if any(issubclass(kind, Enum) or kind is bool for kind in kinds):
        return ""  # its choices say it
    null = ["null"] * _may_be_null(schema, name)
    return (" of " if list in kinds else " or ").join([*dict.fromkeys(filter(None, said)), *null])


def _may_be_null(schema: type, name: str) -> bool:
    return type(None) in get_args(get_type_hints(schema)[name])


def parts(schema: type, name: str) -> list[type]:
    """The classes a field's type is made of, without None: `X | None` is X, `dict[str, X]` dict and X."""
    hint = get_type_hints(schema)[name]
    kinds = [getattr(hint, "__origin__", hint), *get_args(hint)]
    return [kind for kind in kinds if isinstance(kind, type) and kind is not type(None)]


def own_doc(kind: type) -> str:
    """A class's own docstring in one paragraph; empty where a dataclass or the library wrote it."""
    text = kind.__dict__.get("__doc__") or ""
    if not kind.__module__.startswith("paft.") or text.startswith(f"{kind.__name__}("):
        return ""
    return " ".join(inspect.cleandoc(text).split("\n\n")[0].split())


def without_meaning(schema: type) -> list[str]:
    """The fields that nothing explains, as `Class.field`."""
    return [f"{schema.__name__}.{f.name}" for f in fields(schema) if not meaning(schema, f.name)]


@cache
def _body(kind: type) -> ast.ClassDef | None:
    """The class as it is written; None for one that is not ours."""
    if not kind.__module__.startswith("paft."):
        return None
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    return next(node for node in tree.body if isinstance(node, ast.ClassDef))


@cache
def _docs(kind: type) -> dict[str, str]:
    """Field -> the text that stands below it."""
    body = definition.body if (definition := _body(kind)) else []
    return {
        field.target.id: " ".join(below.value.value.split())
        for field, below in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        if isinstance(below.value.value, str)
    }


@cache
def _checks(kind: type) -> list[tuple[str, str]]:
    """(field, range) of every `require(ok, name, value, range)` in the class's own code."""
    pairs: list[tuple[str, str]] = []
    body = _body(kind)
    for loop, call in _calls(body) if body else ():
        # what a range is worked out from stands before the value, as `max_length - 1 = 1023`
        text = re.sub(r" = \{.*?\}", "", _text(call.args[3])) if len(call.args) == 4 else ""
        key = _text(call.args[1]) if text else ""
        if key.endswith(".{name}"):
            pairs += [(name, text) for name in loop]
        elif key:
            pairs.append((key.rpartition(".")[2], text))
    return pairs


def _calls(node: ast.AST, loop: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], ast.Call]]:
    """Every call of `require`, with the names that the loop around it goes through."""
    if isinstance(node, ast.For) and isinstance(node.iter, ast.Tuple):
        loop = tuple(str(item.value) for item in node.iter.elts if isinstance(item, ast.Constant))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require":
        yield loop, node
    for child in ast.iter_child_nodes(node):
        yield from _calls(child, loop)


def _text(node: Any) -> str:
    """A text or an f-string with its placeholders in braces; empty for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    if isinstance(node, ast.FormattedValue):
        return f"{{{ast.unparse(node.value)}}}"
    return ""
