"""Tools and calls of them, in any of the usual notations, as Hugging Face's chat templates read them.

A tool is {"type": "function", "function": {...}}, and the arguments of a call are an object. OpenAI writes arguments as
JSON text, LLaMA-Factory and Glaive a tool without its envelope, CSV all of it as text. Every function raises
`ValueError` naming the field.
"""

import json
from collections.abc import Mapping
from typing import Any

from paft.chat.conversation import ToolCall, Tools
from paft.data.fields import is_blank
from paft.data.texts import as_text
from paft.files.jsonfile import parse

OF_CALL = {"id", "type", "index", "function", "name", "arguments"}


def as_tools(value: Any, name: str) -> Tools:
    """The tools that a column lists, as objects or as JSON text; none where it says nothing."""
    listed = _listed(value, name)
    return [_tool(tool, f"{name}[{at}]") for at, tool in enumerate(listed)]


def _tool(value: Any, name: str) -> dict[str, Any]:
    tool = _object(value, name)
    function = _object(tool.get("function", tool), f"{name}.function")
    as_text(function.get("name"), f"{name}.name")
    return tool if "function" in tool else {"type": "function", "function": tool}


def as_calls(value: Any, name: str) -> list[ToolCall]:
    """The calls of an answer, one or a list, as objects or as JSON text."""
    value = _read(value, name) if isinstance(value, str) else value
    calls = [value] if isinstance(value, Mapping) else value
    if not isinstance(calls, list) or not calls:
        raise ValueError(f"field {name!r} must be a list of tool calls, got {type(value).__name__}")
    return [_call(call, f"{name}[{at}]") for at, call in enumerate(calls)]


def _call(value: Any, name: str) -> ToolCall:
    call = _object(value, name)
    function = _object(call.get("function", call), f"{name}.function")
    for key, said in (call | function).items():
        if key not in OF_CALL and not is_blank(said):
            raise ValueError(
                f"field '{name}.{key!s:.40}' is not used; a call is {{name, arguments}}, alone or as `function`"
            )
    if call.get("type") not in (None, "function"):
        raise ValueError(f"field '{name}.type' must be 'function', got {call['type']!r:.60}")
    arguments = _arguments(function.get("arguments"), f"{name}.arguments")
    typed: ToolCall = {
        "type": "function",
        "function": {"name": as_text(function.get("name"), f"{name}.name"), "arguments": arguments},
    }
    return typed if is_blank(call.get("id")) else {**typed, "id": as_text(call["id"], f"{name}.id")}


def _arguments(value: Any, name: str) -> dict[str, Any]:
    if isinstance(value, str) and value.strip():
        value = _read(value, name)
    return {} if is_blank(value) else _object(value, name)


def _listed(value: Any, name: str) -> list[Any]:
    if is_blank(value):
        return []
    value = _read(value, name) if isinstance(value, str) else value
    if not isinstance(value, list):
        raise ValueError(f"field {name!r} must be a list of tools, got {type(value).__name__}")
    return value


def _object(value: Any, name: str) -> dict[str, Any]:
    """An object that JSON and UTF-8 can hold."""
    if not isinstance(value, Mapping):
        raise ValueError(f"field {name!r} must be an object, got {type(value).__name__}")
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise ValueError(f"field {name!r} holds half a surrogate pair, which is no text") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"field {name!r} is nothing that JSON can hold: {error!s:.100}") from None
    return dict(value)


def _read(text: str, name: str) -> Any:
    raw = as_text(text, name).encode()
    try:
        return parse(raw)
    except ValueError as error:
        raise ValueError(f"field {name!r} must be JSON, and is not: {error}") from None
