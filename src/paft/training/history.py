"""The step log every branch keeps in its own folder, whatever other logger runs."""

import json
import time
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

HISTORY = "history.jsonl"


class History(Logger):
    """Appends one JSON line per logged step to `history.jsonl`; a resumed run drops the lines it repeats."""

    def __init__(self, folder: Path, resumed_step: int) -> None:
        super().__init__()
        self.path = folder / HISTORY
        self.started = time.time()
        if self.path.exists():
            self._keep_before(resumed_step)

    @rank_zero_only
    def _keep_before(self, step: int) -> None:
        lines = self.path.read_text().splitlines()
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] < step]
        self.path.write_text("".join(f"{line}\n" for line in kept))

    @property
    def name(self) -> str:
        return "history"

    @property
    def version(self) -> int:
        return 0

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row: dict[str, Any] = {"step": step, "seconds": round(time.time() - self.started, 3)} | metrics
        row.pop("epoch", None)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: stage.json is the record."""
