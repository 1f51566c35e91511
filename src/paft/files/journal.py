"""What was computed already, a line at a time: a run that was cut short goes on behind the last whole line."""

import json
from pathlib import Path
from typing import Any


class Journal:
    """Values by name, in a file that only grows. Values are JSON; a number comes back as it was."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._kept: dict[str, Any] = {}
        whole = 0
        for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else ():
            if not line.endswith(b"\n"):
                break  # cut short while it was written
            name, value = json.loads(line)
            self._kept[name] = value
            whole += len(line)
        self._file = path.open("ab")
        self._file.truncate(whole)

    def get(self, name: str) -> Any:
        """The value that an earlier run put there; None where none did."""
        return self._kept.get(name)

    def put(self, name: str, value: Any) -> None:
        """Keep a value for a run that goes on."""
        self._file.write(json.dumps([name, value], allow_nan=False).encode() + b"\n")
        self._file.flush()
