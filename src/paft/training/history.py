"""The step log every branch keeps in its own folder, whatever other logger runs."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from paft.files.replacing import replacing
from paft.store.damage import WORK

HISTORY = "history.jsonl"


class History(Logger):
    """Appends one JSON line per logged step to `work/history.jsonl`; a resumed run drops the lines it repeats."""

    def __init__(self, out: Path, resumed_step: int) -> None:
        super().__init__()
        self.path = out / WORK / HISTORY
        self.started = time.monotonic()
        self._keep_before(resumed_step)

    @rank_zero_only
    def _keep_before(self, step: int) -> None:
        self.path.parent.mkdir(exist_ok=True)
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        earlier = [line for line in lines if line.endswith("}") and json.loads(line)["step"] < step]
        with replacing(self.path) as file:
            file.write("".join(f"{line}\n" for line in earlier).encode())

    def log_step(self, metrics: Mapping[str, Tensor], step: int) -> None:
        """A step's averages before Lightning hands them out; told twice, a value counts once (see `table`)."""
        self.log_metrics({name: float(v) for name, v in metrics.items() if name.startswith("train/")}, step)

    def rows(self) -> list[dict[str, float]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def table(self) -> pd.DataFrame:
        """A row per step; several calls may speak of one step, and the first value said of it counts."""
        return pd.DataFrame(self.rows()).groupby("step", as_index=False).first()

    def last_step(self) -> dict[str, float]:
        """The averages of the last optimizer step that was logged and not left out; none if there is no such step."""
        steps = (
            r for r in reversed(self.rows()) if "train/loss" in r and all(map(math.isfinite, r.values()))
        )
        return next(steps, {})

    @property
    def name(self) -> str:
        return "history"

    @property
    def version(self) -> int:
        return 0

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row: dict[str, Any] = {"step": step, "seconds": round(time.monotonic() - self.started, 3)} | metrics
        row.pop("epoch", None)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: stage.json is the record."""
