"""PAFT's side of a training benchmark: the branch's own stages, run as `train.py` would run them.

    python benchmarks/contenders/train_paft.py prepare|train <folder> <override> ...

The overrides are those of `train.py` and name one branch by `paradigm=sft` or `paradigm=preference`.
`prepare` makes the data stage and writes `<folder>/job.json`, from which any other trainer can do the same work:
the rows as tokens in the order training sees them, the base model's folder and every setting that matters.
`train` trains the branch anew and prints one JSON line: when each step ended, what it logged, the seconds of each
stage, the peak memory of a GPU.
"""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra import compose, initialize_config_dir

from paft.command.compose import register_schemas, to_config
from paft.command.pipeline import context_of
from paft.config import BranchConfig, RunConfig
from paft.cost.flops_and_bytes import training_flops
from paft.cost.shape import read_shape
from paft.cost.work import rows_work
from paft.data.tokens import read_preference, read_sft
from paft.device import computed_in
from paft.graph.build import build
from paft.graph.stage import Stage
from paft.model.base import base_folder
from paft.proof.record import device_of
from paft.store.store import Store
from paft.training.batches import StepLoader

ROOT = Path(__file__).parents[2]
READERS: dict[str, Any] = {"sft": read_sft, "preference": read_preference}


class StepClock(L.Callback):
    """Writes to `path` when every step ended, on the clock and in processor time, and what it logged."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.ends: list[float] = []
        self.processor: list[float] = []
        self.logs: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        logged = trainer.callback_metrics.items()
        self.logs.append({n.removeprefix("train/"): float(v) for n, v in logged if n.startswith("train/")})
        self.ends.append(time.perf_counter())
        self.processor.append(time.process_time())

    def on_train_end(self, *args: Any) -> None:
        record = {"ends": self.ends, "processor": self.processor, "logs": self.logs}
        self.path.write_text(json.dumps(record))


def configured(folder: Path, overrides: list[str]) -> tuple[RunConfig, Stage, Stage]:
    """The typed config, the cell's last stage, and the one branch in it."""
    quiet = ["logger=csv", "callbacks=none", "offline=true", "trainer.progress_bar=false"]
    quiet += [f"logs={folder}", f"trainer.checkpoint_every={10**9}"]
    quiet += [f"+callbacks.clock={{_target_: train_paft.StepClock, path: {folder / 'clock.json'}}}"]
    register_schemas()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = to_config(compose("train", [*quiet, *overrides]))
    cell = build(config)
    (branch,) = (stage for stage in cell.walk() if stage.name in READERS)
    return config, cell, branch


def prepare(folder: Path, overrides: list[str]) -> None:
    config, cell, stage = configured(folder, overrides)
    store, branch = Store(config.store), stage.config.branch
    context = context_of(config, store, cell)
    data = store.ensure(stage.inputs["data"], context.run)
    rows = READERS[stage.name](data, "train")
    loader = StepLoader(
        rows, global_batch_size=branch.global_batch_size, steps=branch.max_steps, seed=config.seed
    )
    batches = [list(batch.rows) for batch in loader]
    job = asdict(branch) | {
        "base": str(base_folder(config.model)),
        "dtype": computed_in(config.model.dtype.value, device_of(config.trainer)),
        "seed": config.seed,
        "rows": [row._asdict() for rows in batches for row in rows],
        "tokens": [sum(sum(row.lengths) for row in rows) for rows in batches],
        "pairs": [len(rows) for rows in batches],
    }
    (folder / "job.json").write_text(json.dumps(job | {"flops": flops(job, batches, branch)}))


def flops(job: dict[str, Any], batches: list[list[Any]], branch: BranchConfig) -> list[float]:
    """What each step's training takes, the output head where there is a label."""
    shape = read_shape(Path(job["base"]) / "config.json")
    assert shape is not None, "the benchmark's model is of a kind whose FLOPs are counted"
    return [training_flops(shape, rows_work(rows, branch), branch.lora) for rows in batches]


def train(folder: Path, overrides: list[str]) -> None:
    config, cell, branch = configured(folder, overrides)
    store, seconds = Store(config.store), {}
    context = context_of(config, store, cell)

    def run(stage: Stage, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
        started = time.perf_counter()
        metrics = context.run(stage, inputs, out)
        seconds[stage.name] = time.perf_counter() - started
        return metrics

    for stage in branch.walk():
        if stage.name != "data":
            store.drop(stage)
    store.ensure(branch, run)
    peak = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_initialized() else 0.0
    record = json.loads((folder / "clock.json").read_text())
    print(json.dumps(record | {"seconds": seconds, "device_peak_mb": peak}))


if __name__ == "__main__":
    action, folder, *overrides = sys.argv[1:]
    {"prepare": prepare, "train": train}[action](Path(folder), overrides)
