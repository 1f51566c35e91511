"""What was computed already, a line at a time: a run that was cut short goes on behind the last whole line.

Several processes that compute the same share the work: each writes a file of its own beside the others', and computes
what no other is at, under a lock that is the kernel's and goes with its owner.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

POLL_SECONDS = 0.2


class Gone(Exception):
    """The folder of a journal is there no more: whoever it was kept for has all of it."""


class Journal:
    """Values by name, in files that only grow. Values are JSON; a number comes back as it was.

    Raises `Gone` where the folder that its own is in is not there.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(exist_ok=True)
        except FileNotFoundError:
            raise Gone(path.parent) from None
        self._path = path
        self._kept: dict[str, Any] = {}
        self._read: dict[Path, int] = {}
        """File -> bytes of its whole lines that were read."""
        own, self._lock = self._own()
        self.refresh()
        self._file = own.open("ab")
        self._file.truncate(
            self._read.get(own, 0)
        )  # behind it stands what was cut short while it was written

    def _own(self) -> tuple[Path, FileLock]:
        """The first of the files that no other process writes, and its lock."""
        for number in count():
            file = self._path.with_stem(f"{self._path.stem}-{number}") if number else self._path
            if (lock := _taken(Path(f"{file}.lock"))) is not None:
                return file, lock
        raise AssertionError("there is always another number")

    def refresh(self) -> None:
        """Read what others have written since. Raises `Gone` where that was taken away."""
        for file in sorted(self._path.parent.glob(f"{self._path.stem}*{self._path.suffix}")):
            try:
                self._go_on(file)
            except FileNotFoundError:
                raise Gone(file) from None

    def _go_on(self, file: Path) -> None:
        start = self._read.get(file, 0)
        if file.stat().st_size > start:
            with file.open("rb") as lines:
                lines.seek(start)
                whole = [line for line in lines if line.endswith(b"\n")]
            self._kept.update(json.loads(line) for line in whole)
            self._read[file] = start + sum(map(len, whole))

    def get(self, name: str) -> Any:
        """The value that an earlier run or another process put there; None where none did."""
        return self._kept.get(name)

    def put(self, name: str, value: Any) -> None:
        """Keep a value for a run that goes on."""
        self._kept[name] = value
        self._file.write(json.dumps([name, value], allow_nan=False).encode() + b"\n")
        self._file.flush()

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Whether this process is to compute what has this name; inside, no other is.

        Raises `Gone` where the folder is.
        """
        if not self._path.parent.is_dir():
            raise Gone(self._path.parent)
        lock = _taken(self._path.with_name(f"{sha256(name.encode()).hexdigest()[:24]}.claim"))
        if lock is None:
            yield False
            return
        try:
            self.refresh()  # another may have computed it since this one looked
            yield True
        finally:
            lock.release()

    def wait(self) -> None:
        """A moment, in which others go on."""
        time.sleep(POLL_SECONDS)
        self.refresh()


def _taken(file: Path) -> FileLock | None:
    """The lock, held, unless another has it."""
    lock = FileLock(file, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock
