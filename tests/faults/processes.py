"""`python train.py` as a user starts it, in a process group of its own that can be watched, signalled and killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from conftest import ROOT

from paft.store.damage import find_damage

CRASH = Path(__file__).parent / "crash"
LIMIT = 180.0
"""Seconds any wait may take on a busy machine."""


@dataclass
class Run:
    """A started command; what it says goes to a file."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self) -> int:
        """Its exit code, negative for the signal it died of; a run that does not end is killed and fails the test."""
        try:
            return self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still running after {LIMIT} s:\n{self.said[-3000:]}") from None

    def succeed(self) -> "Run":
        assert self.wait() == 0, self.said[-5000:]
        return self

    def until(self, condition: Callable[[], object]) -> None:
        """Return as soon as `condition` holds; fails if the run ends before it."""
        end = time.monotonic() + LIMIT
        while not condition():
            if self.process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise AssertionError(f"it never happened:\n{self.said[-3000:]}")
            time.sleep(0.002)

    def send(self, signum: int) -> None:
        self.process.send_signal(signum)

    def kill(self) -> None:
        """SIGKILL to the whole group, as when a machine's memory is full or a scheduler's patience ends."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


SMOKE = ("experiment=smoke",)


def own_files(sft: Path, model: str = "tiny") -> tuple[str, ...]:
    """The smoke experiment's training on rows of a file."""
    paths = (f"data.sft.path={sft}", f"data.preference.path={sft}")
    sizes = ("sft.lr=1e-2", "sft.max_steps=8", "sft.global_batch_size=8")
    return (f"model={model}", "data=jsonl", *paths, "evaluate=smoke", "logger=csv", *sizes)


def start(
    *overrides: str,
    logs: Path,
    what: tuple[str, ...] = SMOKE,
    crash: str = "",
    under: tuple[str, ...] = (),
    **env: str,
) -> Run:
    """`python train.py <what> logs=<logs> <overrides>`, with the words of another command before it if wanted."""
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"said-{time.monotonic_ns()}.txt"
    paths = [str(CRASH), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PAFT_TEST_CRASH": crash} | env
    command = [*under, sys.executable, str(ROOT / "train.py"), *what, f"logs={logs}", *overrides]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=logs,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=hear_ctrl_c,
        )
    return Run(process, log)


def hear_ctrl_c() -> None:
    """A shell starts what it runs in the background deaf to SIGINT, tests among it, and that is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def finished(store: Path) -> dict[Path, int]:
    """Every folder that is visible as finished -> when its stage.json was written. Fails if one is not whole."""
    folders = [p for p in store.glob("*/*") if p.is_dir() and "." not in p.name]
    for folder in folders:
        assert find_damage(folder) is None, f"{folder} is visible and {find_damage(folder)}"
    return {folder: (folder / "stage.json").stat().st_mtime_ns for folder in folders}


def scatter_dates(store: Path) -> None:
    """Date every second file 2100 and the others 1990, as machines with such clocks would."""
    for number, path in enumerate(sorted(store.rglob("*"))):
        date = (4_102_444_800, 631_152_000)[number % 2]
        os.utime(path, times=(date, date))


RESULTS = {
    "data": ("train.parquet", "validation.parquet"),
    "sft": ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "sparsity.json"),
    "preference": ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "sparsity.json"),
    "reference": ("reference.parquet",),
    "merge": ("model.safetensors", "merge.json"),
    "evaluate": ("results.json", "samples.jsonl", "merge.json"),
}
"""The files of each stage that hold nothing but results: no times, no paths."""


def assert_same_results(store: Path, expected: Path) -> None:
    """Every stage of `store` has, byte for byte, the results of the same key in `expected`, and all kinds are there."""
    folders = [p for p in store.glob("*/*") if p.is_dir()]
    assert {p.parent.name for p in folders} == set(RESULTS)
    for folder in folders:
        _assert_same(folder, expected)


def assert_same_training(store: Path, expected: Path, branch: str) -> None:
    """The same of the one stage of this name in `store`."""
    (folder,) = (p for p in (store / branch).glob("*") if p.is_dir())
    _assert_same(folder, expected)


def _assert_same(folder: Path, expected: Path) -> None:
    assert "." not in folder.name, f"{folder} was left behind"
    twin = expected / folder.parent.name / folder.name
    names, wanted = ({p.relative_to(f) for p in f.rglob("*") if p.is_file()} for f in (folder, twin))
    assert names == wanted, folder
    for name in RESULTS[folder.parent.name]:
        assert (folder / name).read_bytes() == (twin / name).read_bytes(), folder / name


def children(run: Run) -> list[psutil.Process]:
    """All that it has started and that still runs, whatever their process groups."""
    return psutil.Process(run.process.pid).children(recursive=True)
