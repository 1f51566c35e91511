"""A command in a process of its own, what it took, and what machine it ran on.

Nothing here imports torch: a process's peak counts the memory of the one it was forked from.
"""

import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

BENCHMARKS = Path(__file__).parents[1]
CONTENDERS = BENCHMARKS / "contenders"
PACKAGES = ("torch", "transformers", "peft", "trl", "mergekit", "lm-eval")
# threads that sleep while they wait: `train.py` sets the same, and no contender is slower for it
ENVIRONMENT = {"GOMP_SPINCOUNT": "1000", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Child:
    """A process that has ended well."""

    seconds: float
    """Wall time from start to end."""
    peak_mb: float
    """Largest resident memory, in MiB."""
    result: dict[str, Any]
    """The JSON object on its last line of output; empty if there is none."""


def run_child(*command: str | Path, environment: Mapping[str, str] | None = None) -> Child:
    """Run a command to its end, alone; a first word ending in `.py` runs under this Python.

    Raises `RuntimeError` with the end of its stderr if it fails.
    """
    words = [str(word) for word in command]
    words = [sys.executable, *words] if words[0].endswith(".py") else words
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        started = time.perf_counter()
        variables = os.environ | ENVIRONMENT | dict(environment or {})
        process = subprocess.Popen(words, stdout=out, stderr=err, env=variables)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0), err.seek(0)
        if status:
            raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}:\n{err.read()[-4000:]}")
        return Child(seconds, usage.ru_maxrss / 1024, last_json(out.read()))


def last_json(text: str) -> dict[str, Any]:
    lines = text.strip().splitlines()
    if not lines or not lines[-1].startswith("{"):
        return {}
    result: dict[str, Any] = json.loads(lines[-1])
    return result


class Peak(NamedTuple):
    """The best matrix product of a machine, with the threads the contenders have."""

    flops_per_second: float
    dtype: str
    """The type that a bfloat16 model is computed in."""

    def __str__(self) -> str:
        return f"{self.dtype.replace('bfloat', 'bf')} products, {self.flops_per_second / 1e9:.0f} GFLOP/s"


def matrix_peak(device: str = "cpu") -> Peak:
    found = run_child(CONTENDERS / "matrix_peak.py", device).result
    return Peak(float(found["flops_per_second"]), found["dtype"])


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def versions() -> dict[str, str]:
    found = {name: version(name) for name in PACKAGES if installed(name.replace("-", "_"))}
    return found | {"python": platform.python_version()}


def processor() -> str:
    """The processor's name and model number, without commas.

    The number is there because a virtual machine often says no more than `Intel(R) Xeon(R) Processor`.
    """
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0]
    except OSError:
        first = ""
    pairs = (line.partition(":") for line in first.splitlines())
    told = {name.strip(): value.strip() for name, _, value in pairs}
    if "model name" not in told:
        return platform.processor() or platform.machine()
    name = re.sub(r"\((R|TM)\)|\bProcessor\b|\bCPU\b|@.*|,", "", told["model name"])
    return " ".join([*name.split(), "model", told.get("model", "unknown")])
