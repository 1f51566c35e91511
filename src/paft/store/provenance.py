"""What is worth knowing of a run but cannot change its result: command, commit, versions, host, SLURM job, memory."""

import platform
import shlex
import subprocess
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from paft.process.memory import peak_resident_bytes
from paft.process.slurm import job_name

PACKAGES = ("paft", "torch", "lightning", "transformers", "peft", "datasets", "lm-eval", "wandb")


def provenance() -> dict[str, Any]:
    """JSON-able: the cell's command or null, git commit and dirty flag, package versions, host, SLURM job or null,
    time, peak resident bytes."""
    return {
        "command": command(),
        "git": git_state(),
        "versions": versions(),
        "host": platform.node(),
        "job": job_name(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "peak_memory_bytes": peak_resident_bytes(),
    }


def command() -> str | None:
    """What a shell would be given for the cell that this process works on; None where Hydra did not start it."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return None
    return shlex.join(["python", "train.py", *HydraConfig.get().overrides.task])


@cache
def git_state() -> dict[str, Any]:
    """Commit and dirty flag of the checkout this package runs from; nulls where there is none."""
    here = Path(__file__).parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", here, *words], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    status = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


@cache
def versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return versions
