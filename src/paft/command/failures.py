"""What failed in a grid, as files in its folder: the jobs of a launcher may be processes on other machines.

A cell that fails does not end the grid. Its error is named when it happens and again at the end, and a stage that
failed is not tried again for every other cell that needs it.
"""

import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from paft.command.mistakes import explain
from paft.files.diskfull import is_full
from paft.graph.stage import Stage


class Failures:
    """The failures of one grid, in `<hydra.sweep.dir>/failed`."""

    def __init__(self, sweep: Path) -> None:
        self.folder = sweep / "failed"
        self._last: Exception | None = None
        self._here: dict[str, Exception] = {}
        """Key of a stage -> what it raised in this process, where it may be tried twice in one cell."""

    def clear(self) -> None:
        """Forget those of an earlier grid in the same folder."""
        for path in self.folder.glob("*.txt"):
            path.unlink()

    @contextmanager
    def of(self, stage: Stage) -> Iterator[None]:
        """Inside, `stage` runs; the innermost stage that raises is remembered.

        Raises `ValueError` with its error for one that failed before in this grid, in whatever process.
        """
        path = self.folder / f"{stage.key}.txt"
        if stage.key in self._here:
            raise self._here[stage.key]
        if path.is_file():
            raise ValueError(f"{stage} failed in another cell of this grid: {path.read_text()}")
        try:
            yield
        except Exception as error:
            if error is not self._last and not is_full(error):  # room may be made on a disk meanwhile
                self._write(path, summary(error))
                self._here[stage.key] = error
            self._last = error
            raise

    def add(self, number: int, words: Sequence[str], error: Exception, *, mistake: bool) -> None:
        """Name a failing cell now, and keep its error. One that is no mistake of the user's leaves its traceback."""
        text = summary(error) if mistake else f"{summary(error)} (traceback: {self._traceback(number)})"
        self._write(self._cell(number), text)
        if not mistake:
            self._traceback(number).write_text("".join(traceback.format_exception(error)))
        print(f"error: {cell_name(number, words)}: {text}", file=sys.stderr, flush=True)

    def cell(self, number: int) -> str | None:
        """The error of the grid's cell of this number, in one line; None where it did not fail."""
        path = self._cell(number)
        return path.read_text() if path.is_file() else None

    def unexpected(self, number: int) -> bool:
        """Whether the cell failed by what is no mistake of the user's."""
        return self._traceback(number).is_file()

    def _cell(self, number: int) -> Path:
        return self.folder / f"cell-{number}.txt"

    def _traceback(self, number: int) -> Path:
        return self.folder / f"cell-{number}-traceback.txt"

    def _write(self, path: Path, text: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def cell_name(number: int, words: Sequence[str]) -> str:
    """A cell as Hydra's launchers name it: its number and its overrides."""
    return f"#{number} {' '.join(words)}"


def summary(error: BaseException) -> str:
    """An error and its causes in one line; with its type, where that is more than a message."""
    text = "; ".join(line.strip() for line in explain(error).splitlines())
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}".removesuffix(": ")
