"""Short digests of data, and content hashes of user files: an edited file is a new input and a moved one is not."""

import hashlib
import json
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from paft.files.safetensors import as_safetensors

ADAPTER_SUFFIXES = (".json", ".safetensors", ".jinja", ".model", ".tiktoken", ".txt")


def digest(data: Any) -> str:
    """16 hexadecimal digits of the sha256 of the canonical JSON of `data`: keys in order, no spaces.

    Raises `ValueError` for a number that is not finite, which JSON does not know.
    """
    return text_digest(json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False))


def text_digest(text: str) -> str:
    """16 hexadecimal digits of the sha256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes. Raises `ValueError` naming a path that is not a file."""
    if not os.path.isfile(path):
        raise ValueError(f"{path} is not a file; paths are relative to the folder you run train.py in")
    stat = path.stat()
    return _file_sha256(path.resolve(), stat.st_size, stat.st_mtime_ns)


@cache
def _file_sha256(path: Path, size: int, mtime_ns: int) -> str:
    return content_sha256(path)


def content_sha256(path: Path) -> str:
    """The same, read now whatever was known of the file; empty for a path that is no file any more."""
    if not os.path.isfile(path):
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def adapter_files(folder: Path) -> list[Path]:
    """The files of an adapter folder that say what it is: factors, settings, tokenizer."""
    return sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in ADAPTER_SUFFIXES)


def files_sha256(paths: Iterable[Path]) -> str:
    """Hex sha256 over names and contents of files, in their order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name}\0{file_sha256(path)}\0".encode())
    return digest.hexdigest()


def tree_sha256(folder: Path, name: str) -> str:
    """Hex sha256 over relative paths and contents of every file below a folder, but for hidden ones and caches.

    Raises `ValueError` with the `name` of the setting for a path that is no folder.
    """
    if not os.path.isdir(folder):
        raise ValueError(
            f"{name} must be a folder, got {folder}; paths are relative to the folder you run train.py in"
        )
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        inside = path.relative_to(folder)
        if not any(part.startswith(".") or part == "__pycache__" for part in inside.parts):
            digest.update(f"{inside.as_posix()}\0{file_sha256(path)}\0".encode())
    return digest.hexdigest()


def folder_sha256(folder: Path) -> str:
    """Hex sha256 over names and contents of a model folder's JSON, tokenizer and safetensors files.

    Raises `ValueError` where the folder holds no config.json or no safetensors file.
    """
    there = folder.glob("*") if os.path.isdir(folder) else ()
    names = sorted(p.name for p in there if p.suffix in (".json", ".safetensors", ".jinja", ".model"))
    if "config.json" not in names or not any(n.endswith(".safetensors") for n in names):
        raise ValueError(
            f"{folder} is not a model folder: it needs config.json and *.safetensors, it holds {names or 'nothing'}; "
            f"{as_safetensors(folder)}"
        )
    return files_sha256(folder / name for name in names)
