"""Processes that evaluate the same model at the same time share its batches, and end with the bytes of one alone.

    python test_evaluate_shared.py OUT START SECONDS

evaluates the tiny model into OUT once START is there, each forward pass taking SECONDS longer, and says how many it
made.
"""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from synthetic_store import PAFT
from test_evaluate_resumed import CONFIG, FILES, counted, evaluated
from tiny import MODEL

from paft.command.pipeline import context_of, help_stage
from paft.config import Paradigm, Template
from paft.evaluate.lm import SparingLM
from paft.evaluate.stage import evaluate_model
from paft.files.journal import Gone, Journal
from paft.forward.loglikelihood import LogLikelihoods
from paft.graph.build import build
from paft.graph.configs import EvaluateStage
from paft.graph.stage import Stage
from paft.model.base import base_folder
from paft.proof.record import proved_paths
from paft.store.store import Store

SLOWER = 0.05


def main(out: Path, start: Path, seconds: float) -> None:
    done = 0

    def slowly(forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            done += 1
            time.sleep(seconds)
            return forward(*args, **kwargs)

        return run

    base = base_folder(MODEL)
    paths = proved_paths(base, MODEL, "cpu")
    LogLikelihoods._score = slowly(LogLikelihoods._score)  # type: ignore[method-assign]
    SparingLM._generated = slowly(SparingLM._generated)  # type: ignore[method-assign]
    print("ready", flush=True)
    while not start.exists():
        time.sleep(0.01)
    evaluate_model(base, base, MODEL, Template.chatml, CONFIG, out, device="cpu", paths=paths)
    print(done, flush=True)


def begun(out: Path, start: Path) -> subprocess.Popen[str]:
    """A process that is ready to evaluate into `out`."""
    command = [sys.executable, __file__, str(out), str(start), str(SLOWER)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    return child


def folders(tmp_path: Path) -> list[Path]:
    """Two to write to, with one journal."""
    made = [tmp_path / "one", tmp_path / "other"]
    for folder in made:
        folder.mkdir()
    (made[0] / "work").mkdir()
    (made[1] / "work").symlink_to(made[0] / "work")
    return made


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[bytes], int]:
    """What one process writes, and in how many forward passes."""
    with pytest.MonkeyPatch.context() as patch:
        every = counted(patch)
        return evaluated(tmp_path_factory.mktemp("alone")), len(every)


def test_two_processes_share_the_work_and_write_the_bytes_of_one(tmp_path, alone):
    whole, passes = alone
    outs, start = folders(tmp_path), tmp_path / "start"
    children = [begun(out, start) for out in outs]
    start.touch()
    done = [int(child.communicate(timeout=120)[0]) for child in children]

    for out in outs:
        assert [(out / name).read_bytes() for name in FILES] == whole
    # each part is one process's; what several texts of a part begin with is in it
    assert sum(done) == passes and min(done) > passes / 5


def test_what_a_process_leaves_that_is_killed_is_done_by_the_other(tmp_path, alone):
    whole, passes = alone
    outs, start = folders(tmp_path), tmp_path / "start"
    killed, other = (begun(out, start) for out in outs)
    start.touch()
    journals = [outs[0] / "work" / name for name in ("answered.jsonl", "answered-1.jsonl")]
    while not all(path.is_file() and path.read_bytes().count(b"\n") >= 2 for path in journals):
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    done = int(other.communicate(timeout=120)[0])

    assert [(outs[1] / name).read_bytes() for name in FILES] == whole and done < passes


def cell() -> Stage:
    config = replace(PAFT, paradigm=Paradigm.base)
    return Stage("evaluate", 1, EvaluateStage(MODEL, Template.chatml, CONFIG), build(config).inputs)


def test_a_process_that_waits_for_an_evaluation_takes_part_in_it(tmp_path, alone):
    whole, passes = alone
    stage, store = cell(), Store(tmp_path / "stages")
    config = replace(PAFT, paradigm=Paradigm.base)
    context = context_of(config, store, stage)
    begun_by_other, took_part = threading.Event(), threading.Event()
    mine: list[str] = []

    def slow(stage: Stage, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
        """The holder of the stage comes late: all is there."""
        begun_by_other.set()
        assert took_part.wait(60)
        return context.run(stage, inputs, out)

    holder = threading.Thread(target=lambda: Store(store.root).ensure(stage, slow))
    holder.start()
    assert begun_by_other.wait(60)

    def help(stage: Stage, inputs: dict[str, Path], out: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            made = counted(patch)
            help_stage(stage, inputs, out, context=context)
            mine.extend(made)
        assert not (out / "results.json").exists()
        took_part.set()

    folder = store.ensure(stage, context.run, help=help, poll_seconds=0.02)
    holder.join()

    assert len(mine) == passes and [(folder / name).read_bytes() for name in FILES] == whole
    assert not (folder / "work").exists() and not Path(f"{folder}.partial").exists()


def test_who_is_late_ends_without_a_trace(tmp_path):
    folder = tmp_path / "work"
    with pytest.raises(Gone):
        Journal(tmp_path / "gone" / "work" / "answered.jsonl")
    journal = Journal(folder / "answered.jsonl")
    for file in [*folder.iterdir()]:
        file.unlink()
    folder.rmdir()

    with pytest.raises(Gone), journal.claim("a"):
        pass
    assert not folder.exists()


def test_one_that_claims_is_alone_and_sees_what_others_wrote(tmp_path):
    one, other = (Journal(tmp_path / "work" / "answered.jsonl") for _ in range(2))
    with one.claim("a") as mine, other.claim("a") as theirs, other.claim("b") as free:
        assert (mine, theirs, free) == (True, False, True)
        one.put("a", [0.1])
    assert other.get("a") is None
    with other.claim("a") as theirs:
        assert theirs and other.get("a") == [0.1]
    names = sorted(p.name for p in (tmp_path / "work").glob("*.jsonl"))
    assert names == ["answered-1.jsonl", "answered.jsonl"]
    assert json.loads((tmp_path / "work/answered.jsonl").read_text()) == ["a", [0.1]]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
