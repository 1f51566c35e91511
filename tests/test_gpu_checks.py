"""`make gpu`: each check runs in its form for a CPU; what it asks for and does not find is said."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import forked
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NAMES = [
    "environment", "tests", "gradients", "packing", "sharded", "penalty", "twin", "resume", "nf4", "memory",
    "grid", "throughput", "peers", "merging", "evaluation",
]  # fmt: skip


def run(*words: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), *map(str, words)]
    return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("gpu")


def test_every_check_is_run_below(gpu) -> None:
    assert [*gpu.CHECKS] == NAMES


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_check_on_a_cpu(name: str, tmp_path: Path) -> None:
    words = (name, "--quick", "--out", str(tmp_path))
    if name in MEASURES_ITSELF:
        done = run(*words)
    else:
        done = forked.run(BENCHMARKS / "gpu.py", words, Path.cwd(), os.environ, 600)

    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert rows and all(row["what"].startswith(f"{name}: ") and row["measured"] for row in rows)
    if name in EXACT:  # against itself: what is asked of a GPU holds of a CPU
        assert [row for row in rows if row["at_most"] is not None and row["ratio"] > row["at_most"]] == []


MEASURES_ITSELF = ("memory", "throughput")
"""Whose process is to hold nothing but their own work."""
EXACT = ("tests", "gradients", "packing", "sharded", "twin", "resume", "nf4")


def test_without_a_gpu_every_check_says_why_it_is_skipped(tmp_path: Path) -> None:
    done = run("gradients", "resume", "--out", tmp_path, CUDA_VISIBLE_DEVICES="")

    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert [row["what"] for row in rows] == ["gradients", "resume"]
    assert all("sees no CUDA device" in row["note"] for row in rows)


def test_a_check_that_does_not_exist_is_refused_with_those_that_do() -> None:
    done = run("gradient")

    assert done.returncode == 2
    assert "there is no check gradient; there are environment, tests, gradients" in done.stderr
