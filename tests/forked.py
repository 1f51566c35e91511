"""A script in a process of its own that does not begin by importing: a fork of one that has imported all.

Most of a small run is its imports, eight seconds and more of a slow core. multiprocessing's fork server pays them once
for every process of tests. What reads its environment while it is imported needs a real start, see `AT_START`.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

STAGES = ("data", "training", "merge", "evaluate", "judge")
LOADED = (
    *("paft.command.main", "paft.training.reference", "paft.report.pictures", "wandb"),
    *(f"paft.{name}.stage" for name in STAGES),
)
AT_START = ("PYTHON", "OMP_", "GOMP_", "HF_", "TORCH", "CUDA", "WANDB_")
"""What names of variables begin with that Python or a library reads when it starts."""

server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(list(LOADED))


def can_fork(words: Sequence[str], env: Mapping[str, str]) -> bool:
    """Whether these variables can be set after the imports, and nothing outlives the command's own work.

    A process of multiprocessing waits at its end for all that it has started, as the pool of a launcher, and cuts W&B's
    service off.
    """
    return not any(name.startswith(AT_START) for name in env) and not any(
        "launcher" in word or word == "logger=wandb" for word in words
    )


def run(
    script: Path, words: Sequence[str], cwd: Path, env: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run` of the script with these words gives. Raises `TimeoutExpired` as it does."""
    command = [str(script), *words]
    with tempfile.TemporaryDirectory() as folder:
        out, err = (Path(folder) / name for name in ("stdout", "stderr"))
        out.touch(), err.touch()
        process = server.Process(target=_script, args=(command, str(cwd), dict(env), str(out), str(err)))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(command, timeout, out.read_bytes(), err.read_bytes())
        return subprocess.CompletedProcess(command, process.exitcode, out.read_text(), err.read_text())


def _script(command: list[str], cwd: str, env: dict[str, str], out: str, err: str) -> None:
    for path, descriptor in ((out, 1), (err, 2)):
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = command
    sys.path.insert(0, str(Path(command[0]).parent))
    try:
        runpy.run_path(command[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # a process of multiprocessing leaves them out
