"""Where a stage runs that forwards pairs or trains: here on one device, or as a child of its own on several.

Lightning starts extra ranks by running the script again, which inside a Hydra multirun means running the
whole grid again. So several devices get a `torchrun` child that knows one stage and nothing of Hydra.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from paft.command.libraries import quiet_libraries
from paft.command.mistakes import explain, is_mistake
from paft.config import RunConfig, TrainerConfig, decode
from paft.files.cache import cache_folder
from paft.files.jsonfile import write_json
from paft.graph.build import build
from paft.graph.stage import Stage, canonical
from paft.process import slurm
from paft.process.agent import die_with_parent
from paft.process.allocator import keep_freed_memory
from paft.process.gpu import take_gpu
from paft.process.interrupt import SIGNALS, Interrupted, Postponed, ignore_signals, stop, stop_on_signals
from paft.store.context import Context
from paft.store.store import Store

JOB, METRICS, MISTAKE = "job.json", "metrics.json", "mistake-{}.txt"
"""What a child is told, and what its ranks answer: the results, or what is wrong with the user's input."""


def on_devices(
    stage: Stage, inputs: dict[str, Path], out: Path, context: Context, config: RunConfig
) -> dict[str, Any]:
    """Run the stage into `out`, on `trainer.devices` of each node if it is one that can; returns its metrics.

    Raises `RuntimeError` with the exit code if a rank of a multi-device run fails, its traceback being on stderr;
    `ValueError` for a mistake of the user's, in a rank too, and if there are not as many nodes as
    `trainer.num_nodes`; `Interrupted` if a signal stopped it.
    """
    if not stage.kind.on_devices:
        if stage.kind.runs_base:
            take_own_gpu(context.running.trainer)
        return module_of(stage).run(stage, inputs, out, context)
    settings = context.running.trainer
    slurm.require_nodes(settings.num_nodes)
    for name in (JOB, METRICS, MISTAKE.format("*")):  # of a run that was killed, on other devices perhaps
        for path in out.glob(name):
            path.unlink()
    run = _in_child if settings.world_size > 1 else _here
    metrics = run(stage, inputs, out, context, config)
    join = getattr(module_of(stage), "join", None)
    return metrics if join is None else metrics | join(out, context)


def module_of(stage: Stage) -> ModuleType:
    return importlib.import_module(stage.kind.module)


def take_own_gpu(trainer: TrainerConfig) -> None:
    """Where the trainer names GPUs, compute on one that no other process took."""
    if trainer.accelerator == "gpu":
        take_gpu(cache_folder("gpus"))


def _here(
    stage: Stage, inputs: dict[str, Path], out: Path, context: Context, config: RunConfig
) -> dict[str, Any]:
    if config.trainer.accelerator == "cpu":  # beside a GPU the host's memory is better given back
        keep_freed_memory()
    return module_of(stage).run(stage, inputs, out, context)


def _in_child(
    stage: Stage, inputs: dict[str, Path], out: Path, context: Context, config: RunConfig
) -> dict[str, Any]:
    job, settings = write_job(stage, inputs, out, config), config.trainer
    exit_code, stopped_by = _run([*_launcher(stage, settings), "-m", __name__, str(job)])
    if mistakes := sorted(out.glob(MISTAKE.format("*"))):
        raise ValueError(mistakes[0].read_text())
    if exit_code and not stopped_by:
        where = f"on {settings.world_size} devices"
        raise RuntimeError(f"{stage} {where} failed: exit {exit_code}; the traceback is above")
    if not (out / METRICS).is_file():  # the ranks saved and left
        stop(stopped_by or signal.SIGTERM)
    metrics: dict[str, Any] = json.loads((out / METRICS).read_text())
    for name in (JOB, METRICS):
        (out / name).unlink()
    return metrics


def write_job(stage: Stage, inputs: dict[str, Path], out: Path, config: RunConfig) -> Path:
    """What `main` reads in every rank to run the stage into `out`."""
    write_json(out / JOB, job_of(stage, inputs, config))
    return out / JOB


def job_of(stage: Stage, inputs: dict[str, Path], config: RunConfig) -> dict[str, Any]:
    """What another process is told of a stage that it is to compute, as JSON data."""
    folders = {name: str(folder) for name, folder in inputs.items()}
    return {"key": stage.key, "config": canonical(config, whole=True), "inputs": folders}


def told(job: dict[str, Any]) -> tuple[Stage, dict[str, Path], RunConfig, Context]:
    """The stage of `job_of`, its inputs, and what it is to run in."""
    config = decode(job["config"])
    assert isinstance(config, RunConfig)
    cell = build(config)
    (stage,) = (s for s in cell.walk() if s.key == job["key"])
    quiet_libraries([stage])
    inputs = {name: Path(folder) for name, folder in job["inputs"].items()}
    return stage, inputs, config, Context(config.running, Store(config.store), cell)


def _launcher(stage: Stage, settings: TrainerConfig) -> list[str]:
    """The words that start the rest of a command in every rank."""
    sizes = [f"--nnodes={settings.num_nodes}", f"--nproc-per-node={settings.devices}"]
    agent = [sys.executable, "-m", "paft.process.agent", *sizes]
    if settings.num_nodes == 1:
        return [*agent, "--standalone"]
    # a port of its own for each stage of each job
    place = f"{slurm.first_node()}:{20000 + (int(stage.key, 16) + int(slurm.job_id() or 0)) % 10000}"
    meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint={place}", f"--rdzv-id={stage.key}"]
    return [*slurm.on_each_node(settings.num_nodes), *agent, *meeting]


def _run(command: list[str]) -> tuple[int, int]:
    """Exit code of the command, and the signal this process was sent meanwhile, which the command was told of."""
    signals = Postponed()
    signals.begin()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until the child can take them
    try:
        child = subprocess.Popen(command)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        try:
            return _wait(child, signals), signals.received
        finally:
            child.kill()  # a second Ctrl-C; no more than a formality otherwise
            child.wait()
    finally:
        signals.end()


def _wait(child: subprocess.Popen[bytes], signals: Postponed) -> int:
    told = False
    while True:
        try:
            return child.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            if signals.received and not told:
                child.send_signal(signals.received)
                told = True


def main(job_path: Path) -> None:
    """One rank of a child: rebuild the stage from the job file and run it."""
    stage, inputs, config, context = told(json.loads(job_path.read_text()))
    if (
        config.trainer.accelerator == "gpu"
    ):  # before anything is put on `cuda`, which is the first one otherwise
        import torch

        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        metrics = _here(stage, inputs, job_path.parent, context, config)
    except Interrupted:
        ignore_signals()
        return  # without metrics, which says so
    except ValueError as error:
        if not is_mistake(error):
            raise
        (job_path.parent / MISTAKE.format(os.environ.get("RANK", "0"))).write_text(explain(error))
        raise SystemExit(2) from None
    if os.environ.get("RANK", "0") == "0":
        write_json(job_path.parent / METRICS, metrics)


if __name__ == "__main__":
    die_with_parent()
    stop_on_signals(take_over=True)
    main(Path(sys.argv[1]))
