"""Run a cell: the missing stages of its graph, then its row in the report and in W&B."""

import importlib
import logging
import shlex
from collections.abc import Iterable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from paft.command.chosen import refuse_scored_by
from paft.command.devices import on_devices, take_own_gpu
from paft.command.failures import Failures
from paft.command.judged import require_judged_cell
from paft.command.libraries import in_four_bits, quiet_libraries
from paft.command.preflight import before_stages, require_columns
from paft.command.spread import on_other_devices
from paft.config import RunConfig
from paft.files.unwritable import DENIED
from paft.graph.build import build
from paft.graph.stage import Stage
from paft.process.cuda import release_memory, same_products
from paft.proof.record import device_of, known, proved_paths
from paft.store.context import Context
from paft.store.store import Store

log = logging.getLogger("paft")


def run_cell(config: RunConfig, cell: Stage, failures: Failures | None = None) -> Path:
    """The finished evaluate folder of `cell`; stages already in the store are not run again.

    Raises `ValueError` for a stage that is among the `failures` of the cell's grid.
    """
    store = Store(config.store)
    context = context_of(config, store, cell, failures)
    missing = {s.key: s for s in store.missing(cell)}
    for stage in cell.walk():
        if stage.key not in missing and store.complete(stage):
            log.info("%-12s %s  hit               %s", stage.name, stage.key, store.path(stage))
    prepare(config, missing.values())
    # their errors come before any model
    store.ensure_all([stage for stage in missing.values() if stage.name == "data"], context.run)
    prove_bases(missing.values(), context)
    folder = store.ensure(cell, context.run, help=partial(help_stage, context=context))
    from paft.report.wandb_cell import log_cell

    log_cell(cell, context)
    if not config.merge.keep:
        drop_merged(store, cell)
    return folder


def context_of(config: RunConfig, store: Store, cell: Stage, failures: Failures | None = None) -> Context:
    """What the stages of a cell run in."""
    run = partial(run_stage, config=config, failures=failures)
    return Context(config.running, store, cell, run, partial(on_other_devices, config=config))


def prepare(config: RunConfig, missing: Iterable[Stage]) -> None:
    """Load what the missing stages need, and refuse what can be refused before they run.

    Libraries load before a stage's clock runs, so that its seconds are its own work; children on several devices load
    their own.
    """
    missing = list(missing)
    if config.trainer.deterministic:
        same_products()
    quiet_libraries(missing)
    require_judged_cell(config, missing)
    if in_four_bits(missing):
        from paft.model.quantize import refuse_without_package

        refuse_without_package()
    here = [s for s in missing if config.trainer.world_size == 1 or not s.kind.on_devices]
    for module in sorted({s.kind.module for s in here}):
        importlib.import_module(module)
    if missing:
        before_stages(config, missing)
        if config.trainer.world_size == 1:
            take_own_gpu(config.trainer)
    if any(s.name == "evaluate" for s in here):
        require_columns(config.evaluate)
        refuse_scored_by(config)


def prove_bases(missing: Iterable[Stage], context: Context) -> None:
    """Before a stage's clock runs: which fast paths the bases take. Of several GPUs the first rank finds out."""
    trainer = context.running.trainer
    if trainer.accelerator == "gpu" and trainer.world_size > 1:
        return
    from paft.model.base import base_folder

    bases = {s.config.model.name: s.config.model for s in missing if s.kind.runs_base}
    for model in bases.values():
        proved_paths(base_folder(model, offline=context.running.offline), model, device_of(trainer))


def run_stage(
    stage: Stage,
    inputs: dict[str, Path],
    out: Path,
    context: Context,
    *,
    config: RunConfig,
    failures: Failures | None = None,
) -> dict[str, Any]:
    """Fill `out` with the result of one stage; returns the metrics for stage.json."""
    release_memory()  # a stage that runs inside of a training needs room beside it
    try:
        with failures.of(stage) if failures else nullcontext():
            metrics = on_devices(stage, inputs, out, context, config)
    finally:
        release_memory()
    device = device_of(context.running.trainer)
    if stage.kind.runs_base and (proof := known(stage.config.model, device)):
        metrics |= {"base_difference": proof["largest_difference"]}
    return metrics


def help_stage(stage: Stage, inputs: dict[str, Path], out: Path, *, context: Context) -> None:
    """Take part in a stage that another process holds, where its module can: that process writes the result."""
    if take_part := getattr(importlib.import_module(stage.kind.module), "take_part", None):
        take_own_gpu(context.running.trainer)
        take_part(stage, inputs, out, context)


def drop_merged(store: Store, cell: Stage) -> None:
    """merge.keep=false: the model goes, its evaluation stays valid."""
    stage = cell.inputs.get("model")
    if stage is None:
        return
    there = store.complete(stage)
    try:
        store.drop(stage)  # also what a run killed here has left
    except OSError as error:
        if error.errno not in DENIED:
            raise
        log.warning("%s stays: the store may not be written", stage)
        return
    if there:
        log.info("%-12s %s  deleted (merge.keep=false)", stage.name, stage.key)


def write_report(configs: list[RunConfig]) -> None:
    """results.csv, index.html and PNGs over everything in the store, and this run's rows in the terminal."""
    from paft.report.build import Report
    from paft.report.build import write_report as write
    from paft.report.terminal import print_run

    config = configs[0]
    store, folder = Path(config.store), Path(config.logs) / "report"
    report = Report(store)
    write(report, folder)
    keys = {build(c).key for c in configs}
    others = [r for r in report.table if r.evaluate_key not in keys]
    command = ["python", "-m", "paft.report", "--store", str(store), "--out", str(folder)]
    print_run(
        report.of_run(keys),
        others=others,
        store=store,
        page=folder / "index.html",
        everything=shlex.join(command),
    )
