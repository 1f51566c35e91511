"""What stands beside a stage's folder: its lock, the folder it is made in, and what had to make way."""

import os
from pathlib import Path

from filelock import FileLock


def lock(path: Path) -> FileLock:
    """The lock of a stage folder; entering it raises `Timeout` while another process is inside.

    It is the kernel's: it goes with its owner, however that ends, and the file that stays means nothing.
    """
    file = Path(f"{path}.lock")
    if file.is_symlink() or (file.exists() and not file.is_file()):
        raise ValueError(
            f"{file} must be an empty file made by PAFT, it is a link, a folder or a pipe; remove it"
        )
    return FileLock(file, blocking=False)


def own_folder(partial: Path) -> None:
    """Make sure of a folder to work in, without links: a stage makes none, and would write through them."""
    if partial.is_symlink() or not partial.is_dir():
        partial.unlink(missing_ok=True)
    partial.mkdir(exist_ok=True)
    for path in partial.rglob("*"):
        if path.is_symlink():
            path.unlink()


def move_aside(path: Path) -> Path | None:
    """Free the place of a finished stage; returns where what stood there is now, None if it was free."""
    if not path.exists() and not path.is_symlink():
        return None
    aside = free_name(path, "damaged")
    os.replace(path, aside)
    return aside


def free_name(path: Path, suffix: str) -> Path:
    """`<path>.<suffix>-1`, or the next number that is free."""
    candidates = (path.with_name(f"{path.name}.{suffix}-{n}") for n in range(1, 10_000))
    return next(p for p in candidates if not p.exists())
