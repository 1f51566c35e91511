"""Which device an evaluation computes on: the trainer's kind, and of several GPUs one that no other process took."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from synthetic_store import PAFT
from tiny import MODEL

from paft.config import EvaluateConfig, Paradigm, TaskConfig, Template
from paft.evaluate.lm import lm_of
from paft.evaluate.stage import run
from paft.graph.build import build
from paft.graph.configs import EvaluateStage
from paft.graph.stage import Stage
from paft.model.base import base_folder, load_tokenizer
from paft.process.gpu import first_free
from paft.proof.base import load_base
from paft.store.context import Context
from paft.store.store import Store

TAKING = """
import sys
from pathlib import Path
from paft.process.gpu import first_free

number, lock = first_free(["GPU-a", "GPU-b"], Path(sys.argv[1]))
print(number, lock is not None, flush=True)
sys.stdin.readline()
"""


def process(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """One that takes a GPU and keeps it, and what it says of it."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    child = subprocess.Popen([sys.executable, "-c", TAKING, str(folder)], **pipes)
    assert child.stdout is not None
    return child, child.stdout.readline().strip()


def test_processes_take_gpus_of_their_own_as_long_as_there_are_some(tmp_path):
    started = [process(tmp_path / "gpus") for _ in range(3)]
    try:
        (first, one), (_, other), (third, shared) = started
        assert (one, other) == ("0 True", "1 True")
        assert shared == f"{third.pid % 2} False"
        first.send_signal(signal.SIGKILL)
        first.wait()
        started.append(process(tmp_path / "gpus"))
        assert started[-1][1] == "0 True"
    finally:
        for child, _ in started:
            child.kill()
            child.communicate()


def test_a_folder_that_cannot_be_made_is_no_reason_to_stop(tmp_path, caplog):
    (tmp_path / "file").touch()
    number, lock = first_free(["GPU-a", "GPU-b"], tmp_path / "file" / "gpus")

    assert lock is None and number == os.getpid() % 2 and "cannot be written" in caplog.text


def test_an_evaluation_stays_on_the_cpu_that_the_trainer_names_where_there_is_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    tasks = {"honesty": TaskConfig("paft_honesty", "acc,none")}
    evaluate = EvaluateConfig(name="few", tasks=tasks, limit=2)
    cell = build(replace(PAFT, paradigm=Paradigm.base, evaluate=evaluate))
    stage = Stage("evaluate", 1, EvaluateStage(MODEL, Template.chatml, evaluate))
    scores = run(stage, {}, tmp_path, Context(PAFT.running, Store(tmp_path / "store"), cell))

    assert scores["honesty"] in (0, 0.5, 1)


@pytest.mark.parametrize("named", [None, "cpu"])
def test_a_model_is_scored_where_it_is_unless_a_device_is_named(named):
    folder = base_folder(MODEL)
    tokenizer = load_tokenizer(folder, Template.chatml)
    lm = lm_of(load_base(folder, MODEL), tokenizer, 2, named, chats=False)

    assert lm.device == lm.model.device == torch.device("cpu")
