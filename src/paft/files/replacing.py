"""Files that appear under their name whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

UNFINISHED = ".tmp"
"""How the name of a file ends while it is written."""
PARTIAL = ".partial"
"""The same of a folder."""


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` once it is whole, and vanishes on an error.

    It is written in the same folder, as a rename from another disk would be a copy. A link that stands in either
    place is replaced, never followed. `durable` waits until the disk has it: for what nothing can check later.
    """
    temporary = path.with_name(f"{path.name}{UNFINISHED}")
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("xb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
