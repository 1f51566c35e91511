"""Run a cell: the missing stages of its graph, then its row in the report and in W&B."""

import importlib
import logging
import shlex
import shutil
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from paft.config import FileSource, Quantization, RunConfig
from paft.failures import Failures
from paft.graph import FORWARDS, Apply, DataStage, EvaluateStage, MergeStage, refuse_changed
from paft.proof.record import device_of, known, proved_paths
from paft.run import Context
from paft.stage import Stage
from paft.store.jsonfile import write_json
from paft.store.store import Store
from paft.store.unwritable import DENIED

log = logging.getLogger("paft")

IMPLEMENTED_IN = {
    "data": "paft.data.prepare",
    "reference": "paft.training.reference",
    "sft": "paft.training.fit",
    "preference": "paft.training.fit",
    "merge": "paft.merge.apply",
    "evaluate": "paft.evaluate.run",
}
"""Stage -> the module that loads its libraries, which takes seconds."""


def run_cell(config: RunConfig, cell: Stage, failures: Failures | None = None) -> Path:
    """The finished evaluate folder of `cell`; stages already in the store are not run again.

    Raises `ValueError` for a stage that is among the `failures` of the cell's grid.
    """
    store = Store(config.store)
    context = Context(config, store, cell, failures)
    missing = {s.key: s for s in store.missing(cell)}
    quiet_libraries(missing.values())
    if in_four_bits(missing.values()):
        from paft.quantize import refuse_without_package

        refuse_without_package()
    for stage in cell.walk():
        if stage.key not in missing and store.complete(stage):
            log.info("%-10s %s  hit               %s", stage.name, stage.key, store.path(stage))

    def work(stage: Stage, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
        return run_stage(stage, inputs, out, context)

    # before a stage's clock runs, so that its seconds are its own work; children on several devices load their own
    elsewhere = {"reference", "sft", "preference"} if config.trainer.world_size > 1 else set()
    for name in sorted({stage.name for stage in missing.values()} - elsewhere):
        importlib.import_module(IMPLEMENTED_IN[name])
    if cell.key in missing:
        from paft.evaluate.run import refuse_tasks, task_manager

        # now, not after the trainings
        refuse_tasks(config.evaluate, task_manager({t.task for t in config.evaluate.tasks.values()}))
    # their errors come before any model
    store.ensure_all([stage for stage in missing.values() if stage.name == "data"], work)
    prove_bases(missing.values(), context)
    folder = store.ensure(cell, work)
    from paft.tracking import log_cell

    log_cell(cell, context)
    if not config.merge.keep:
        drop_merged(store, cell)
    return folder


def prove_bases(missing: Iterable[Stage], context: Context) -> None:
    """Before a stage's clock runs: which fast paths the bases take. Of several GPUs the first rank finds out."""
    trainer = context.config.trainer
    if trainer.accelerator == "gpu" and trainer.world_size > 1:
        return
    from paft.model import base_folder

    for model in {s.config.model.name: s.config.model for s in missing if s.name in FORWARDS}.values():
        proved_paths(base_folder(model, offline=context.config.offline), model, device_of(trainer))


def in_four_bits(stages: Iterable[Stage]) -> bool:
    """Whether one of them trains on a base in four bits."""
    return any(stage.config.model.quantization is Quantization.nf4 for stage in stages)


def quiet_libraries(stages: Iterable[Stage]) -> None:
    """Before libraries are imported: what they say of themselves, and no user of these stages can act on.

    peft and lm-eval import bitsandbytes wherever it is installed; its advice is for bases in four bits.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.NOTSET if in_four_bits(stages) else logging.CRITICAL)
    logging.getLogger("matplotlib.font_manager").setLevel(logging.WARNING)


def run_stage(stage: Stage, inputs: dict[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Fill `out` with the result of one stage; returns the metrics for stage.json."""
    with context.failures.of(stage) if context.failures else nullcontext():
        metrics = _run_stage(stage, inputs, out, context)
    if stage.name in FORWARDS and (proof := known(stage.config.model, device_of(context.config.trainer))):
        metrics |= {"base_difference": proof["largest_difference"]}
    return metrics


def _run_stage(stage: Stage, inputs: dict[str, Path], out: Path, context: Context) -> dict[str, Any]:
    match stage.name:
        case "data":
            return prepare_data(stage.config, out, context)
        case "sft" | "preference":
            from paft.training.launch import on_devices

            return on_devices(stage, inputs, out, context)
        case "reference":
            return score_reference(stage, inputs, out, context)
        case "merge":
            return merge(stage.config, inputs, out, context)
        case "evaluate":
            return evaluate(stage.config, inputs, out, context)
    raise ValueError(f"unknown stage {stage.name!r}")


def prepare_data(config: DataStage, out: Path, context: Context) -> dict[str, Any]:
    from paft.data.limits import max_positions
    from paft.data.prepare import prepare_preference, prepare_sft
    from paft.model import base_folder, load_tokenizer

    base = base_folder(config.model, offline=context.config.offline)
    tokenizer = load_tokenizer(base, config.template, trust_remote_code=config.model.trust_remote_code)
    prepare = prepare_sft if config.branch == "sft" else prepare_preference
    refuse_changed(config)
    counts = prepare(config.source, tokenizer, out, max_positions(base))
    refuse_changed(config)  # while it was read
    if isinstance(config.source, FileSource):  # no part of the key, and what people know the rows by
        return counts | {"file": Path(config.source.path).name}
    return counts


def score_reference(stage: Stage, inputs: dict[str, Path], out: Path, context: Context) -> dict[str, Any]:
    from paft.training.launch import on_devices
    from paft.training.reference import join

    on_devices(stage, inputs, out, context)
    return join(out) | {"devices": context.config.trainer.world_size}


def merge(config: MergeStage, inputs: dict[str, Path], out: Path, context: Context) -> dict[str, Any]:
    from paft.data.standalone import copy_tokenizer, tokenizer_folder, write_tokenizer
    from paft.merge.apply import apply_adapters, merge_adapters
    from paft.model import base_folder, load_tokenizer

    base = base_folder(config.model, offline=context.config.offline)
    adapters = {name: folder / "adapter" for name, folder in inputs.items()}
    if isinstance(config.method, Apply):
        report = apply_adapters(base, adapters, out, config.method.dtype)
    else:
        report = merge_adapters(base, adapters, config.method, out)
    if (brought := tokenizer_folder(adapters.values())) is not None:
        copy_tokenizer(brought, out)
    else:  # adapters of an earlier release, or of a tokenizer that is not read alike without its config.json
        trusted = config.model.trust_remote_code
        tokenizer = load_tokenizer(base, config.template, trust_remote_code=trusted)
        write_tokenizer(tokenizer, base, out, trust_remote_code=trusted)
    write_json(out / "merge.json", report)
    return {name: value for name, value in report.items() if name != "layers"}


def evaluate(config: EvaluateStage, inputs: dict[str, Path], out: Path, context: Context) -> dict[str, Any]:
    from paft.evaluate.run import evaluate_model
    from paft.model import base_folder

    base = base_folder(config.model, offline=context.config.offline)
    if "model" in inputs and (inputs["model"] / "merge.json").is_file():
        # the report of the merge outlives the merged model (merge.keep=false)
        shutil.copy(inputs["model"] / "merge.json", out / "merge.json")
    rows = {name: str(folder) for name, folder in inputs.items() if name != "model"}
    results = evaluate_model(
        inputs.get("model", base),
        base,
        config.model,
        config.template,
        config.evaluate,
        out,
        rows,
        device=(device := device_of(context.config.trainer)),
        paths=proved_paths(base, config.model, device),
    )
    return {"average": results["average"], **{c: t["score"] for c, t in results["tasks"].items()}}


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
        log.info("%-10s %s  deleted (merge.keep=false)", stage.name, stage.key)


def write_report(configs: list[RunConfig]) -> None:
    """results.csv, index.html and PNGs over everything in the store, and this run's rows in the terminal."""
    from paft.graph import build
    from paft.report.build import Report
    from paft.report.build import write_report as write
    from paft.report.terminal import print_run

    config = configs[0]
    store, folder = Path(config.store), Path(config.logs) / "report"
    report = Report(store)
    write(report, folder)
    keys = {build(c).key for c in configs}
    others = sum(r.evaluate_key not in keys for r in report.table)
    command = ["python", "-m", "paft.report", "--store", str(store), "--out", str(folder)]
    print_run(
        report.of_run(keys),
        others=others,
        store=store,
        page=folder / "index.html",
        everything=shlex.join(command),
    )
