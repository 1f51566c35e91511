"""An evaluation that other devices of its job take part in: the bytes of one device, and no process left over.

    python test_evaluate_spread.py OUT

evaluates the tiny model into OUT with two processes beside it, and never comes to the end of its first text.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from synthetic_store import PAFT
from test_evaluate_resumed import CONFIG
from test_merge_apply import save_adapter
from tiny import MODEL

from paft.command.pipeline import context_of
from paft.command.spread import shared
from paft.config import (
    Backend,
    EvaluateConfig,
    HardwareConfig,
    Paradigm,
    RunConfig,
    StrategyConfig,
    StrategyName,
    TrainerConfig,
)
from paft.evaluate import stage
from paft.evaluate.lm import SparingLM
from paft.graph.build import build
from paft.model.base import base_folder
from paft.process.interrupt import Interrupted, stop_on_signals
from paft.store.context import Context
from paft.store.store import Store

SECONDS = 120
"""That any wait may take on a busy machine."""
FILES = ("results.json", "samples.jsonl", "answers.parquet")
BASE = replace(PAFT, model=MODEL, evaluate=CONFIG, paradigm=Paradigm.base)


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def lines(out: Path) -> list[int]:
    """What each process that takes part has written so far, in lines."""
    return [path.read_bytes().count(b"\n") for path in sorted((out / "work").glob("answered*.jsonl"))]


def at_work(out: Path) -> int:
    """How many of them have written something."""
    return sum(number > 0 for number in lines(out))


def started(parent: int | None = None) -> list[psutil.Process]:
    """The processes on other devices that one has started, and that still run."""
    found = psutil.Process(parent).children()
    return [p for p in found if p.status() != psutil.STATUS_ZOMBIE and "paft.command.spread" in p.cmdline()]


def waits_for(monkeypatch: pytest.MonkeyPatch, done: Callable[[], None]) -> None:
    """Let this process write no text before `done`."""
    generated = SparingLM._generated

    def late(*args: Any, **kwargs: Any) -> Any:
        done()
        return generated(*args, **kwargs)

    monkeypatch.setattr(SparingLM, "_generated", late)


def evaluated(out: Path, inputs: dict[str, Path], others: int = 0) -> tuple[list[bytes], dict[str, Any]]:
    """What is written, and the metrics."""
    out.mkdir(exist_ok=True)
    cell = build(BASE)
    spread = partial(shared, config=BASE, others=others)
    metrics = stage.run(cell, inputs, out, Context(BASE.running, Store(BASE.store), cell, spreader=spread))
    return [(out / name).read_bytes() for name in FILES], metrics


def main(out: Path) -> None:
    stop_on_signals(take_over=True)
    with pytest.MonkeyPatch.context() as patch:
        waits_for(patch, lambda: time.sleep(SECONDS))
        try:
            evaluated(out, {}, others=2)
        except Interrupted as stop:
            sys.exit(stop.exit_code)


# --- results ------------------------------------------------------------------------------------------


@pytest.fixture(params=["base", "adapter"])
def inputs(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Path]:
    """What is evaluated: nothing but the base, or a model that is to be made of an adapter."""
    if request.param == "base":
        return {}
    save_adapter(base_folder(MODEL), tmp_path / "merge" / "adapter", seed=1)
    return {"model": tmp_path / "merge"}


@pytest.mark.slow
def test_two_processes_write_what_one_writes(inputs, tmp_path, monkeypatch):
    whole, alone = evaluated(tmp_path / "alone", inputs)
    out = tmp_path / "spread"
    waits_for(monkeypatch, lambda: until(lambda: at_work(out) == 2))
    written, metrics = evaluated(out, inputs, others=1)

    assert written == whole and metrics == alone | {"devices": 2}
    assert len(lines(out)) == 2 and min(lines(out)) >= 1 and not started()


@pytest.mark.slow
def test_what_a_process_leaves_that_is_killed_is_done_by_the_owner(tmp_path, monkeypatch, caplog):
    merged = {"model": base_folder(MODEL)}
    whole, _ = evaluated(tmp_path / "alone", merged)
    out = tmp_path / "spread"

    def killed() -> None:
        until(lambda: at_work(out) == 2)
        for child in started():
            child.kill()
        until(lambda: not started())

    waits_for(monkeypatch, killed)
    written, _ = evaluated(out, merged, others=1)

    assert written == whole and "a process on another device failed, exit -9" in caplog.text


def test_a_process_that_cannot_be_started_is_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with shared(build(BASE), {}, tmp_path, BASE, 1) as devices:
        assert devices == 1
    assert "no process could be started for another device" in caplog.text


# --- who is started, and who is left ------------------------------------------------------------------

DDP = StrategyConfig(StrategyName.ddp)
GPUS = {
    "trainer": TrainerConfig("gpu", devices=3),
    "strategy": DDP,
    "hardware": HardwareConfig("a100_80gb", "gpu"),
    "sft": replace(PAFT.sft, global_batch_size=12),
    "preference": replace(PAFT.preference, global_batch_size=12),
}
VLLM: dict[str, Any] = {"evaluate": EvaluateConfig(name="few", tasks=CONFIG.tasks, backend=Backend.vllm)}
CPUS: dict[str, Any] = {"trainer": TrainerConfig("cpu", devices=2), "strategy": DDP}


@pytest.mark.parametrize(
    ("settings", "locked", "devices"),
    [(GPUS, True, 3), (GPUS, False, 1), (GPUS | VLLM, True, 1), (CPUS, True, 1)],
    ids=["three GPUs", "GPUs that others may be using", "vLLM", "CPU"],
)
def test_as_many_as_there_are_gpus_of_its_own(settings, locked, devices, tmp_path, monkeypatch):
    monkeypatch.setattr("paft.command.spread.has_gpu", lambda: locked)
    config: RunConfig = replace(BASE, **settings)
    cell = build(config)
    with context_of(config, Store(tmp_path), cell).spread(cell, {}, tmp_path) as number:
        assert number == devices == 1 + len(started())
    assert not started()


TERM = pytest.param(signal.SIGTERM, marks=pytest.mark.exhaustive)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT, TERM])
def test_nobody_is_left_when_the_owner_ends(signum, tmp_path):
    with (tmp_path / "said.txt").open("w") as said:
        owner = subprocess.Popen(
            [sys.executable, __file__, str(tmp_path)], stderr=said, start_new_session=True
        )
    try:
        until(lambda: len(lines(tmp_path)) == 3 and at_work(tmp_path) >= 2)
        others = started(owner.pid)
        if signum == signal.SIGKILL:  # else they might do what it left, and end by themselves
            for other in others:
                other.suspend()
        if signum == signal.SIGINT:
            os.killpg(owner.pid, signum)  # as a terminal does: to every process of the group
        else:
            owner.send_signal(signum)
        code = owner.wait(SECONDS)
    finally:
        owner.kill()
        owner.wait()

    left = psutil.wait_procs(others, timeout=SECONDS)[1]
    for other in left:
        other.kill()
    assert len(others) == 2 and not left
    assert code == (-signum if signum == signal.SIGKILL else 128 + signum)
    assert "Traceback" not in (tmp_path / "said.txt").read_text()


def test_who_is_started_by_one_that_is_gone_by_now_does_nothing():
    command = [sys.executable, "-m", "paft.command.spread", "0"]  # which is no process's number
    assert subprocess.run(command, stdin=subprocess.DEVNULL, timeout=SECONDS).returncode == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
