"""A folder that appears under its name whole or not at all, and never among what was there before."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paft.files.replacing import PARTIAL


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A new folder to fill, beside `folder` and then in its place; on an error nothing is left of it.

    Raises `ValueError` for a name that anything but an empty folder has: a model among the files of another is read
    as either.
    """
    folder = folder.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        held = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else ["no folder but a file"]
        raise ValueError(
            f"the output folder must be new or empty, {folder} holds {', '.join(held[:5])}"
            f"{', ...' * (len(held) > 5)}; choose another, or remove it first if nothing in it is needed"
        )
    partial = folder.with_name(f"{folder.name}{PARTIAL}")
    if partial.exists():
        raise ValueError(
            f"{partial} is there: another process writes it, or one was killed while it did; then remove it"
        )
    partial.mkdir(parents=True)
    try:
        yield partial
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
