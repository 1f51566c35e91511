"""JSON files: written whole or not at all; read as their value or a ValueError that says in words what is wrong."""

import json
import sys
from pathlib import Path
from typing import Any

from paft.files.replacing import replacing


def write_json(path: Path, data: Any) -> None:
    """Write `data` so that a reader sees the old file or the whole new one; a link is replaced, not followed.

    Raises `ValueError` for NaN and infinity, which JSON does not have.
    """
    text = json.dumps(data, indent=1, allow_nan=False)
    with replacing(path, durable=True) as file:
        file.write(text.encode())


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises `ValueError` naming the file if it is absent, no JSON or no object."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}; save or download its folder again")
    try:
        value = parse(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError(f"it must hold an object, got {type(value).__name__}")
        return value
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}; save or download it again") from None


def parse(raw: bytes, *, distinct: bool = False) -> Any:
    """The value of JSON text in UTF-8, with or without a byte-order mark.

    Raises `ValueError` for text that is not UTF-8, broken, nested deeper than Python's stack or with an integer of
    more digits than Python reads; with `distinct` also for an object with two fields of one name, of which JSON
    readers keep the last.
    """
    try:
        return json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_distinct if distinct else None)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start + 1} is not UTF-8") from None
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise ValueError(f"broken JSON at {line}column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise ValueError("its brackets are nested too deeply to be read") from None
    except _TwoFields:
        raise
    except ValueError:
        digits = sys.get_int_max_str_digits()
        raise ValueError(f"it holds an integer of more than {digits} digits") from None


class _TwoFields(ValueError):
    pass


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _TwoFields(f"field {twice!r:.60} stands twice in one object; remove one")
    return value
