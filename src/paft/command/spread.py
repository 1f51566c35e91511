"""An evaluation on all GPUs of a job: for each of the others a process takes part in it, as another job would.

No `torchrun` as for a training: these processes need nothing of each other. What each computes is in the journal of the
evaluation, so one that fails or is ended, at whatever moment, costs no more than the batch it was at.

    python -m paft.command.spread OWNER < JOB
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stderr
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from paft.command.devices import job_of, module_of, take_own_gpu, told
from paft.config import RunConfig
from paft.graph.stage import Stage
from paft.process.agent import die_with_parent
from paft.process.gpu import has_gpu
from paft.process.interrupt import unheard

log = logging.getLogger("paft")


def on_other_devices(
    stage: Stage, inputs: dict[str, Path], out: Path, *, config: RunConfig
) -> AbstractContextManager[int]:
    """`shared` with a process for each other GPU of this node that the trainer names.

    With none on a CPU, whose cores are shared by threads, nor where no lock tells which GPU is this process's own.
    """
    return shared(stage, inputs, out, config, config.evaluated_on - 1 if has_gpu() else 0)


@contextmanager
def shared(stage: Stage, inputs: dict[str, Path], out: Path, config: RunConfig, others: int) -> Iterator[int]:
    """Inside, so many other processes take part in an evaluation whose journal is in `out`; gives how many all are.

    They end with the block, and with this process, however that ends. One that fails is a warning: its share is
    computed by the others.
    """
    children: list[subprocess.Popen[bytes]] = []
    try:
        try:
            with unheard():
                while len(children) < others:
                    children.append(_begun(job_of(stage, inputs, config) | {"out": str(out)}))
        except OSError as error:
            log.warning("%s: no process could be started for another device: %s", stage, error)
        if children:
            log.info("%-12s %s  on %d devices", stage.name, stage.key, 1 + len(children))
        yield 1 + len(children)
    finally:
        _end(stage, children)


def _begun(job: dict[str, Any]) -> subprocess.Popen[bytes]:
    with TemporaryFile("w+", encoding="utf-8") as file:
        json.dump(job, file)
        file.seek(0)
        command = [sys.executable, "-m", __name__, str(os.getpid())]
        return subprocess.Popen(command, stdin=file, stdout=subprocess.DEVNULL)


def _end(stage: Stage, children: Sequence[subprocess.Popen[bytes]]) -> None:
    """End those that still run, and say which had failed."""
    failed = [code for child in children if (code := child.poll())]
    for child in children:
        child.kill()
    for child in children:
        child.wait()
    for code in failed:
        log.warning("%s: a process on another device failed, exit %d; the others did its share", stage, code)


def main(owner: int) -> None:
    """Take part in the evaluation that standard input tells of, unless its owner is gone already."""
    die_with_parent()
    if os.getppid() != owner:
        return
    logging.basicConfig(format="%(message)s")  # to where the owner's errors go
    job = json.load(sys.stdin)
    stage, inputs, config, context = told(job)
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):  # progress is the owner's to show
        take_own_gpu(config.trainer)
        module_of(stage).take_part(stage, inputs, Path(job["out"]), context)


if __name__ == "__main__":
    main(int(sys.argv[1]))
