"""What a stage may know of the run it is part of; nothing here can change a result."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paft.config import Running
from paft.graph.stage import Stage
from paft.store.store import Store

Run = Callable[[Stage, dict[str, Path], Path, "Context"], dict[str, Any]]
"""(stage, folders of its inputs, folder to fill, context) -> metrics for stage.json."""
Spread = Callable[[Stage, dict[str, Path], Path], AbstractContextManager[int]]
"""(stage, folders of its inputs, folder it is computed in) -> inside, how many devices are at it."""


@dataclass(frozen=True)
class Context:
    """How to run, where stages live, and the cell being worked on."""

    running: Running
    store: Store
    cell: Stage
    """The evaluate stage this run is for."""
    runner: Run | None = None
    """Runs any stage of the graph: for callbacks that score a model while it is trained."""
    spreader: Spread | None = None
    """Has the other devices of this job take part in an evaluation."""

    def run(self, stage: Stage, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
        """Fill `out` with the result of a stage that need not be this one; returns its metrics."""
        assert self.runner is not None, "a rank of several runs no other stage"
        return self.runner(stage, inputs, out, self)

    def spread(self, stage: Stage, inputs: dict[str, Path], out: Path) -> AbstractContextManager[int]:
        """Inside, all devices of this job compute an evaluation that lies in `out`; gives how many they are."""
        return self.spreader(stage, inputs, out) if self.spreader else nullcontext(1)
