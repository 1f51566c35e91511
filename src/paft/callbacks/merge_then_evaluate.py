"""Merge with the partner branch and evaluate: at the end of a branch's training and, if wanted, during it."""

import csv
import io
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from paft.config import Backend
from paft.evaluate.results import Results
from paft.files.replacing import replacing
from paft.graph.stage import Stage
from paft.store.context import Context
from paft.store.damage import WORK

log = logging.getLogger("paft")

CURVE = "merged_scores.csv"
COLUMNS = ("step", "column", "score", "stderr", "higher_is_better", "merge_key", "evaluate_key")


class MergeThenEvaluate(Callback):
    """Logs the merged model's scores as `merged/<column>` to the branch's loggers (W&B, history.csv).

    It acts in a branch whose partner is already in the store. After the last step it runs the cell's own
    `merge` and `evaluate` stages, so nothing is done twice; with `every_n_train_steps` it also scores the
    merged model during training, which leaves the trained adapter bitwise unchanged. One device only: on
    several, the stages run after the ranks have ended.

    During training it also writes the curve to the branch's merged_scores.csv, with standard errors and the keys of
    the cell it belongs to: a line per step and column, where `step` optimizer steps had been made.
    """

    def __init__(self, every_n_train_steps: int | None = None) -> None:
        if every_n_train_steps is not None and every_n_train_steps < 1:
            raise ValueError(
                "callbacks.merge_then_evaluate.every_n_train_steps must be positive or null, "
                f"got {every_n_train_steps}"
            )
        self.every_n_train_steps = every_n_train_steps
        self.context: Context | None = None

    def bind(self, context: Context, stage: Stage, out: Path, fingerprints: dict[str, str]) -> None:
        """Tell the callback which branch it is in; without this it does nothing."""
        self.context, self.stage, self.out, self.fingerprints = context, stage, out, fingerprints

    @property
    def merge(self) -> Stage | None:
        """The merge stage to run, if this branch is one of two merged ones and the other is finished.

        None where answers are judged, which costs money, or written by another program, which takes the whole device:
        that is done once, when the cell is trained.
        """
        if self.context is None or "judge" in self.context.cell.inputs:
            return None
        if self.context.cell.config.evaluate.backend is not Backend.hf:
            return None
        merge = self.context.cell.inputs.get("model")
        if merge is None or self.stage.key not in {s.key for s in merge.inputs.values()}:
            return None
        partners = [s for s in merge.inputs.values() if s.key != self.stage.key]
        return merge if partners and all(self.context.store.sound(s) for s in partners) else None

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Of an earlier run that was killed, keep what comes before the step it is resumed from."""
        if self.context is not None and (self.out / CURVE).is_file() and trainer.is_global_zero:
            self._write([row for row in self._read() if int(row[0]) <= trainer.global_step])

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, every = trainer.global_step, self.every_n_train_steps
        if every is None or step % every or step == trainer.max_steps or trainer.world_size > 1:
            return
        merge = self.merge
        if merge is not None:
            started = time.time()
            self._log(trainer, self._score_now(merge, pl_module), step)
            pl_module.seconds_elsewhere += time.time() - started

    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        merge = self.merge
        if merge is None or self.context is None or trainer.world_size > 1:
            return
        if trainer.global_step < pl_module.num_steps:  # stopped: this adapter is not the branch's
            return
        context, started = self.context, time.time()
        pl_module.backbone.save(self.out / pl_module.backbone.folder, self.fingerprints)
        with context.store.lend(self.stage, self.out):
            try:
                folder = context.store.ensure(context.cell, context.run)
            except ValueError as refused:  # the cell meets it again, when its branch is safe in the store
                log.warning("%s is trained, its merge or evaluation was refused: %s", self.stage, refused)
                return
        self._log(trainer, Results.read(folder), trainer.global_step)
        pl_module.seconds_elsewhere += time.time() - started

    def _score_now(self, merge: Stage, module: Any) -> Results:
        """Merge the adapter as it is now with the finished partner and evaluate, in a folder that is then deleted."""
        assert self.context is not None
        here = self.out / WORK / "merge_then_evaluate"
        shutil.rmtree(here, ignore_errors=True)
        for name in ("branch", "model", "scores"):
            (here / name).mkdir(parents=True)
        module.backbone.save(here / "branch" / module.backbone.folder, self.fingerprints)
        key = self.stage.key
        inputs = {
            name: here / "branch" if s.key == key else self.context.store.path(s)
            for name, s in merge.inputs.items()
        }
        self.context.run(merge, inputs, here / "model")
        others = {n: s for n, s in self.context.cell.inputs.items() if n != "model"}
        beside = {n: self.context.store.ensure(s, self.context.run) for n, s in others.items()}
        self.context.run(self.context.cell, {"model": here / "model", **beside}, here / "scores")
        results = Results.read(here / "scores")
        shutil.rmtree(here)
        return results

    def _log(self, trainer: L.Trainer, results: Results, step: int) -> None:
        scores = {f"merged/{column}": task.score for column, task in results.tasks.items()}
        if results.average is not None:
            scores["merged/average"] = results.average
        for logger in trainer.loggers:
            logger.log_metrics(scores, step - 1)  # the step just made, counted from 0 as Lightning does
        if self.every_n_train_steps is not None:
            self._keep(results, step)
        log.info("merged at step %d: %s", step, ", ".join(f"{k}={v:.4f}" for k, v in scores.items()))

    def _keep(self, results: Results, step: int) -> None:
        """Add the step's scores to the curve, in place of what an earlier run said of this step."""
        assert self.context is not None and self.merge is not None
        keys = (self.merge.key, self.context.cell.key)
        rows = self._read() if (self.out / CURVE).is_file() else []
        rows = [row for row in rows if int(row[0]) < step]
        tasks = results.tasks.items()
        rows += [[step, column, t.score, t.stderr, t.higher_is_better, *keys] for column, t in tasks]
        self._write(rows)

    def _read(self) -> list[list[Any]]:
        with (self.out / CURVE).open(newline="") as file:
            return list(csv.reader(file))[1:]

    def _write(self, rows: list[list[Any]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
        with replacing(self.out / CURVE) as file:
            file.write(text.getvalue().encode())
