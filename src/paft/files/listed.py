"""The files that a path of the user's means, and what they are known by together."""

import hashlib
import os
from collections.abc import Callable, Sequence
from glob import glob
from pathlib import Path

from paft.files.fingerprint import file_sha256
from paft.files.jsonfile import read_object

STATE, SPLITS = "state.json", "dataset_dict.json"
"""What `datasets.save_to_disk` writes beside the rows: of one data set, and of several splits."""


def listed_files(names: Sequence[str]) -> list[Path]:
    """The files in order: a path's own, those that match a pattern by name, those of a `save_to_disk` folder.

    Raises `ValueError` for a pattern that matches nothing and for another folder. Whether a path is a file is not
    looked at.
    """
    return [path for name in names for path in _meant(name)]


def _meant(name: str) -> list[Path]:
    path = Path(name)
    if os.path.isdir(path):
        return _saved(path)
    if os.path.isfile(path) or not any(mark in name for mark in "*?["):
        return [path]
    matches = [Path(match) for match in sorted(glob(name, recursive=True)) if Path(match).is_file()]
    if not matches:
        raise ValueError(f"no file matches {name}; looked for it in {Path.cwd()}")
    return matches


def _saved(folder: Path) -> list[Path]:
    """The Arrow files of a folder, in the order of its rows."""
    if (folder / SPLITS).is_file():
        splits = read_object(folder / SPLITS).get("splits")
        named = splits if isinstance(splits, list) else []
        raise ValueError(
            f"{folder} holds the splits {', '.join(map(str, named)):.200}; give one of them, as {folder / 'train'}"
        )
    if not (folder / STATE).is_file():
        raise ValueError(
            f"{folder} is a folder, and not one that datasets.save_to_disk wrote (it has no {STATE}); name its files, "
            f"as '{folder}/*.jsonl'"
        )
    files = read_object(folder / STATE).get("_data_files")
    names = (
        [file.get("filename") for file in files if isinstance(file, dict)] if isinstance(files, list) else []
    )
    inside = [name for name in names if isinstance(name, str) and name and Path(name).name == name]
    if not inside or len(inside) < len(names):
        raise ValueError(f"{folder / STATE} names no files of its own folder; save the data set again")
    return [folder / name for name in inside]


def joint_sha256(files: Sequence[Path], read: Callable[[Path], str] = file_sha256) -> str:
    """Hex sha256 of the contents of one file; of several that of their own in order."""
    digests = [read(path) for path in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\0".join(digests).encode()).hexdigest()
