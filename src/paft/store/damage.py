"""What a finished stage folder holds, and whether it still does."""

import hashlib
from pathlib import Path
from typing import Any

from paft.files.jsonfile import read_object
from paft.files.replacing import PARTIAL, UNFINISHED

WORK = "work"
"""In such a folder: what only a run that was cut short needs, as checkpoints. Never part of the result."""


def find_damage(folder: Path) -> str | None:
    """What is wrong with a finished folder, in words, or None; its name may still be the one it is filled under."""
    try:
        record = read_object(folder / "stage.json")
    except (ValueError, OSError) as error:
        return str(error)
    if (record.get("stage"), record.get("key")) != (folder.parent.name, folder.name.removesuffix(PARTIAL)):
        return f"stage.json is of {record.get('stage')!r:.40} {record.get('key')!r:.40}"
    if not isinstance(record.get("outputs"), dict) or not isinstance(record.get("metrics"), dict):
        return "stage.json does not list outputs and metrics"
    for name, expected in record["outputs"].items():
        if wrong := _wrong_output(folder, name, expected):
            return wrong
    return None


def _wrong_output(folder: Path, name: str, expected: object) -> str | None:
    if not name.isprintable() or Path(name).is_absolute() or ".." in Path(name).parts:
        return f"stage.json lists {name!a:.100}, which is no file of its folder"
    try:
        # neither a pipe nor a device, which might never end
        if not (folder / name).is_file():
            return f"{name} is missing"
        return None if _digest(folder / name) == expected else f"{name} does not have its recorded sha256"
    except OSError as error:
        return f"{name:.100} cannot be read: {error.strerror}"


def digests(folder: Path) -> dict[str, dict[str, Any]]:
    """Name -> bytes and sha256 of every file of the result: not stage.json, nor what a run cut short left."""
    files = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    results = (p for p in files if p.parts[0] != WORK and p.suffix != UNFINISHED)
    return {
        name: _digest(folder / name) for name in sorted(p.as_posix() for p in results) if name != "stage.json"
    }


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
