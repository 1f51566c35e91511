"""SLURM: a job that is asked to stop goes back to the queue, and a stage may run on all nodes of its job."""

import logging
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from paft.process.interrupt import Interrupted, ignore_signals, stop_on_signals

log = logging.getLogger("paft")


@contextmanager
def requeued() -> Iterator[None]:
    """Inside a batch job, a signal that stops the run puts the job back in the queue; elsewhere nothing changes.

    SLURM sends one before the time limit (`--signal`) and on preemption, a person with `scancel --signal`. The job
    starts again with the same command and goes on from what the run saved. Raises `SystemExit` when it has stopped.
    """
    if job_id() is None:
        yield
        return
    stop_on_signals(take_over=True)  # the launcher's own handlers would requeue before anything is saved
    try:
        yield
    except Interrupted as stop:
        ignore_signals()  # SLURM sends more of them while it ends the job
        if stop.signum != signal.SIGINT:
            _requeue(stop)
        raise SystemExit(stop.exit_code) from stop


def job_id() -> str | None:
    return os.environ.get("SLURM_JOB_ID")


def job_name() -> str | None:
    """As `squeue` shows it: `<array>_<task>` for a job of an array, else its number; None outside of a job."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return f"{array}_{task}" if array and task else job_id()


def _requeue(stop: Interrupted) -> None:
    """Unless the job is cancelled, or on its way to the queue already."""
    job = _show("job", job_id() or "")
    required = {"JobState": "RUNNING", "BatchFlag": "1", "Requeue": "1"}
    if any(job.get(name) != value for name, value in required.items()):
        log.info("job %s: stopped by %s", job_name(), stop)
        return
    log.info("job %s: stopped by %s, back to the queue", job_name(), stop)
    subprocess.run(["scontrol", "requeue", job_id() or ""], check=True, timeout=60)


def require_nodes(num_nodes: int) -> None:
    """Raise `ValueError` unless this process may start work on `num_nodes` nodes."""
    given = int(os.environ.get("SLURM_JOB_NUM_NODES", 1))
    if num_nodes > 1 and given < num_nodes:
        where = f"this SLURM job has {given}" if job_id() else "this is no SLURM job"
        raise ValueError(
            f"trainer.num_nodes={num_nodes} needs a SLURM job with as many nodes, {where}; set it to 1, or add "
            "-m hydra/launcher=slurm (docs/cluster.md)"
        )


def on_each_node(num_nodes: int) -> list[str]:
    """The words before a command that start it once on each of the job's first `num_nodes` nodes.

    The step shares the job's CPUs, GPUs and memory with the one this process belongs to, which waits for it.
    """
    sizes = [f"--nodes={num_nodes}", f"--ntasks={num_nodes}", "--ntasks-per-node=1"]
    return ["srun", *sizes, "--overlap", "--cpu-bind=none", "--kill-on-bad-exit=1"]


def first_node() -> str:
    """Address of the job's first node, as SLURM itself reaches it."""
    nodes = os.environ["SLURM_JOB_NODELIST"]
    names = subprocess.run(
        ["scontrol", "show", "hostnames", nodes], check=True, capture_output=True, text=True, timeout=60
    )
    name = names.stdout.split()[0]
    return _show("node", name).get("NodeAddr", name)


def _show(kind: str, name: str) -> dict[str, str]:
    """`scontrol show`, as far as it is `Name=value` words."""
    command = ["scontrol", "show", kind, name, "--oneliner"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    return dict(re.findall(r"(?:^|\s)([A-Za-z]+)=(\S*)", done.stdout))
