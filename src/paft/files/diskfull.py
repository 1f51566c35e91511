"""A full disk, in words."""

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskFull(ValueError):
    """A disk or a quota is full; the message names the folder and what to do."""


@contextmanager
def naming_full_disk(what: str, folder: Path) -> Iterator[None]:
    """Inside, an error that comes of a full disk becomes a `DiskFull` naming `folder`; the innermost such folder."""
    try:
        yield
    except Exception as error:
        if isinstance(error, DiskFull) or not is_full(error):
            raise
        raise DiskFull(
            f"no space left for {what} in {folder} ({_room(folder)}). Nothing finished is lost: make room there, or "
            "name a folder on another disk with store=..., then give the same command again to go on"
        ) from error


def is_full(error: BaseException) -> bool:
    """Whether a full disk or quota is behind an error; libraries in C++ and Rust only say so in words."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in FULL:
            return True
        if re.search(r"No space left on device|Disk quota exceeded|os error 28\b|\bcode: 28\b", str(seen)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _room(folder: Path) -> str:
    there = next(p for p in (folder, *folder.parents) if p.is_dir())
    usage = shutil.disk_usage(there)
    return f"{usage.free / 1e6:.1f} of {usage.total / 1e6:.1f} MB free"
