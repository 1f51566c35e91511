"""Python runs this at its start where its folder is on PYTHONPATH: dies of SIGKILL at one event of its own.

PAFT_TEST_CRASH is `<event> <pattern> [half|stop]` or `<number> <folder>`. Events are Python's audit events: `open` and
`os.rename`, the latter named by where the file goes. `half` first cuts the file that was to be renamed in the middle,
as if the kill had come while it was written; `stop` halts the process instead of killing it. A number n is the n-th
change of a file below the folder.
"""

import os
import signal
import sys
from fnmatch import fnmatch
from typing import Any

CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_event(wanted: str, pattern: str, how: str = "") -> None:
    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == wanted and fnmatch(str(args[1 if event == "os.rename" else 0]), pattern):
            if how == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
                return
            if how == "half":
                os.truncate(args[0], os.path.getsize(args[0]) // 2)
            die()

    sys.addaudithook(hook)


def at_change(number: int, folder: str) -> None:
    left = number

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal left
        if (
            event in CHANGES
            and str(args[0]).startswith(folder)
            and not (event == "open" and args[1] in ("r", "rb"))
        ):
            left -= 1
            if left == 0:
                die()

    sys.addaudithook(hook)


words = os.environ.get("PAFT_TEST_CRASH", "").split()
if words and words[0].isdigit():
    at_change(int(words[0]), words[1])
elif words:
    at_event(*words)
