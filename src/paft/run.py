"""What a stage may know of the run it is part of; nothing here can change a result."""

from dataclasses import dataclass

from paft.config import RunConfig
from paft.failures import Failures
from paft.stage import Stage
from paft.store.store import Store


@dataclass(frozen=True)
class Context:
    """How to run (`config.trainer`, `config.strategy`, ...), where stages live, and the cell being worked on."""

    config: RunConfig
    store: Store
    cell: Stage
    """The evaluate stage this run is for."""
    failures: Failures | None = None
    """Of the grid the cell belongs to."""
