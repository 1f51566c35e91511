"""Hydra's hooks around a grid.

A grid is checked whole before its first cell starts, planned as one graph, and reported when it ends, with the cells
that failed named.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from paft.command.cells import compose_cells
from paft.command.compose import to_config
from paft.command.failures import Failures, cell_name
from paft.command.grid import cell_config, expand, is_grid
from paft.command.launchers import refused_jobs, require_launcher
from paft.command.mistakes import explain
from paft.command.preflight import refuse_columns_of
from paft.command.search import best_trial, refuse_search, warn_of_split
from paft.command.unread import refuse_unused
from paft.config import RunConfig
from paft.graph.build import build
from paft.plan import show_plan
from paft.store.store import Store

log = logging.getLogger("paft")


class GridError(BaseException):
    """Carries its cause past Hydra, which turns any `Exception` of a callback into a warning and goes on."""


@contextmanager
def wrapped() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise GridError from error


@contextmanager
def unwrapped() -> Iterator[None]:
    try:
        yield
    except GridError as carrier:
        assert carrier.__cause__ is not None
        raise carrier.__cause__ from carrier.__cause__.__cause__


class Sweep(Callback):
    """Hydra's hooks around a grid."""

    begun: ClassVar["Sweep | None"] = None
    """The grid that this process started and has not reported yet."""

    def __init__(self) -> None:
        self.configs: list[RunConfig] = []
        self.searching = False
        self.keys: list[str] = []
        """Of the cells as planned; jobs take them along, whatever launches them and wherever."""
        self.words: list[tuple[str, ...]] = []
        """The overrides of each cell."""

    @wrapped()
    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Compose and check every cell before the first one runs; with plan=true, print the whole graph."""
        if not is_grid(config.hydra.sweeper):
            self._begin_search(config)  # each cell is checked when its turn comes
            return
        self.words = expand(config)
        self.configs = compose_cells(self.words, partial(cell_config, config))
        refuse_unused(config.hydra.overrides.task, self.configs)
        cells = [(c, build(c)) for c in self.configs]
        self.keys = [cell.key for _, cell in cells]
        if self.configs and self.configs[0].plan:
            show_plan(cells)
            raise SystemExit(0)  # nothing to launch
        require_launcher(config.hydra.launcher)
        refuse_columns_of(cells)
        self.failures = Failures(Path(config.hydra.sweep.dir))
        self.failures.clear()
        Sweep.begun = self
        log.info("%d cells", len(cells))

    def _begin_search(self, config: DictConfig) -> None:
        """With plan=true, show one trial; the settings that all trials share are checked here."""
        one = to_config(OmegaConf.create({k: v for k, v in config.items_ex(resolve=False) if k != "hydra"}))
        sweeper = config.hydra.sweeper
        refuse_search(sweeper, one, config.hydra.overrides.task)
        if one.plan:
            show_plan([(one, build(one))])
            print(
                f"a search of {sweeper.get('n_trials', '?')} trials; each is a cell like this one with other values"
            )
            raise SystemExit(0)
        require_launcher(config.hydra.launcher)
        logging.getLogger("alembic").setLevel(logging.WARNING)  # Optuna's storage lists its plugins
        warn_of_split(one)
        self.searching = True

    @wrapped()
    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse a cell that is no longer the planned one: a grid compares what was made from the same files."""
        if not self.keys:
            return
        number = config.hydra.job.num
        values = {k: v for k, v in config.items_ex(resolve=False) if k != "hydra"}
        if build(to_config(OmegaConf.create(values))).key != self.keys[number]:
            raise ValueError(
                f"a data or model file changed after the grid was planned: cell {number} would not be comparable with "
                "the others. Finished stages stay; put the old file back, or give the same command again to run the "
                "grid with the new one"
            )

    @wrapped()
    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Table, CSV, HTML and pictures over everything the store holds; then every cell that failed, by name."""
        if self.searching and (best := best_trial(config)):
            self.report([best])
        if Sweep.begun is self:
            Sweep.begun = None
            self.end()

    @classmethod
    @contextmanager
    def reported(cls) -> Iterator[None]:
        """A grid that ends early, as a launcher lost a job, still has the table of the cells that are finished."""
        try:
            yield
        except Exception as error:
            grid, cls.begun = cls.begun, None
            if refusal := refused_jobs(error):
                raise ValueError(refusal) from None  # no cell began
            if grid is not None:
                try:
                    grid.end()
                except (ValueError, RuntimeError) as failed:
                    print(f"error: {explain(failed)}", file=sys.stderr)
            raise

    def end(self) -> None:
        """The report of the finished cells. Raises `ValueError` naming the others; `RuntimeError` where there is no
        finished one and that is no mistake of the user's."""
        store = Store(self.configs[0].store, verify=False)
        errors: dict[int, str] = {}
        for number, config in enumerate(self.configs):
            error = self.failures.cell(number)
            if error or not store.complete(build(config)):
                errors[number] = error or "it did not finish; its own output says why"
        finished = [config for number, config in enumerate(self.configs) if number not in errors]
        self.report(finished)
        if not errors:
            return
        told = [f"{len(errors)} of {len(self.configs)} cells failed; the same command tries them again"]
        told += [f"{cell_name(number, self.words[number])}: {error}" for number, error in errors.items()]
        unexpected = not finished and any(map(self.failures.unexpected, errors))
        raise (RuntimeError if unexpected else ValueError)("\n".join(told))

    def report(self, finished: list[RunConfig]) -> None:
        if finished and not finished[0].plan:
            from paft.command.pipeline import write_report

            write_report(finished)
