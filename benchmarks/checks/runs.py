"""Whole trainings by train.py: on the device and on the CPU, killed and resumed, in four bits, several at once."""

import csv
import gc
import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from checks.given import Given, composed
from harness.process import BENCHMARKS, CONTENDERS, run_child
from measure import Row, skipped
from safetensors.torch import load_file
from torch import Tensor

from paft.command.pipeline import context_of
from paft.files.jsonfile import read_object
from paft.graph.build import build
from paft.plan.table import estimate
from paft.store.store import Store

TRAIN = BENCHMARKS.parent / "train.py"
BRANCH = ("paradigm=sft", "evaluate.limit=1", "sft.schedule=constant", "sft.warmup_ratio=0", "offline=true")
MODEL = {"mistral": ("model=smollm2_135m",), "tiny": ("model=tiny", "data=smoke", "evaluate=smoke")}
"""Of the checks that need a model that has learnt something."""
STEPS = {"mistral": 20, "tiny": 4}
KILLED_AT = {"mistral": 7, "tiny": 3}
NAME = "adapter_model.safetensors"
SMALL = "share_below_1e-5"
"""The paper's measure of sparsity."""


def twin(given: Given) -> list[Row]:
    """One training on the CPU and on the device: losses, the delta's direction, its sparsity."""
    words = (*MODEL[given.shape], *BRANCH, "lambda=1e-4", f"sft.max_steps={STEPS[given.shape]}")
    here = Given("cpu", given.shape, given.layers, given.folder)
    cpu, device = (trained(of, of.folder / name, words) for name, of in (("cpu", here), ("device", given)))
    losses = [[float(row["train/loss"]) for row in history(stage)] for stage in (cpu, device)]
    off = max(abs(b / a - 1) for a, b in zip(*losses, strict=True))
    cosine = of_deltas(*(factors(stage) for stage in (cpu, device)))
    shares = [read_object(stage / "sparsity.json")["over_elements"] for stage in (cpu, device)]
    apart = abs(float(shares[0][SMALL]) - float(shares[1][SMALL]))
    last = f"{losses[1][-1]:.4f}", "CPU", f"{losses[0][-1]:.4f}"
    return [
        Row(
            f"loss of {STEPS[given.shape]} steps", *last, ratio=off, at_most=0.01, note="largest of all steps"
        ),
        Row("cosine of the deltas", f"{cosine:.5f}", "CPU", ratio=cosine, at_least=0.99),
        Row(
            "elements below 1e-5",
            f"{shares[1][SMALL]:.2%}",
            "CPU",
            f"{shares[0][SMALL]:.2%}",
            apart,
            at_most=0.01,
        ),
    ]


def resume(given: Given) -> list[Row]:
    """A training that is killed without warning and given again, against one that nobody disturbed."""
    words = (
        *MODEL[given.shape],
        *BRANCH,
        "lambda=1e-4",
        "sft.lora.dropout=0.05",
        "trainer.checkpoint_every=2",
    )
    words = (*words, f"sft.max_steps={STEPS[given.shape]}")
    kill = f"+callbacks.kill={{_target_: killed.KillAfter, step: {KILLED_AT[given.shape]}}}"
    whole = trained(given, given.folder / "whole", words)
    command = [sys.executable, str(TRAIN), *given.trainer, *words, f"logs={given.folder / 'killed'}"]
    path = os.pathsep.join([str(CONTENDERS), os.environ.get("PYTHONPATH", "")])
    died = subprocess.run([*command, kill], env=os.environ | {"PYTHONPATH": path}, capture_output=True)
    resumed = trained(given, given.folder / "killed", words)
    same = adapter(whole).read_bytes() == adapter(resumed).read_bytes()
    ours, theirs = (load_file(adapter(stage)) for stage in (resumed, whole))
    off = max(float((ours[n] - t).abs().max()) for n, t in theirs.items())
    shown = "the same bytes" if same else f"values {off:.1e} apart"
    what = f"killed at step {KILLED_AT[given.shape]} of {STEPS[given.shape]} (exit {died.returncode}) and resumed"
    return [Row(what, shown, "undisturbed", ratio=off, at_most=0)]


def nf4(given: Given) -> list[Row]:
    """Four bits: trains, saves, and takes the memory that the plan says."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return [skipped("nf4", "bitsandbytes")]
    words = (
        *given.base(given.few_layers),
        *given.rows("sft", 8, 128),
        *BRANCH,
        "lambda=0",
        "sft.max_steps=2",
    )
    words = (*words, "sft.global_batch_size=4", "evaluate=smoke", "merge.prove=false")
    rows, losses = [], {}
    for kind in ("none", "nf4"):
        stage = trained(given, given.folder / kind, (*words, f"model.quantization={kind}"))
        losses[kind] = [float(row["train/loss"]) for row in history(stage)]
        peak = read_object(stage / "stage.json")["metrics"]["throughput"]["peak_memory_gb"]
        rows.append(Row(f"peak memory, quantization={kind}", f"{peak:.2f} GB"))
    a, b = losses["nf4"][0], losses["none"][0]
    return [*rows, Row("first loss, nf4", f"{a:.4f}", "bfloat16", f"{b:.4f}", abs(a / b - 1), at_most=0.05)]


def memory(given: Given) -> list[Row]:
    """Peak of trainings against the plan, and what a finished stage leaves on the device."""
    settings = {
        "r=16": ("sft.lora.rank=16", "trainer.gradient_checkpointing=false"),
        "r=128": ("sft.lora.rank=128", "trainer.gradient_checkpointing=false"),
        "r=16, recomputed": ("sft.lora.rank=16", "trainer.gradient_checkpointing=true"),
    }
    tokens = 2048 if given.shape == "mistral" else 128
    rows = []
    for number, (name, words) in enumerate(settings.items()):
        fixed = (*given.base(given.layers), *given.rows("sft", 8, tokens), *BRANCH, "sft.max_steps=2")
        fixed = (*fixed, "sft.global_batch_size=4", "trainer.micro_batch_size=4", *given.trainer)
        rows += planned_memory(given, name, (*fixed, *words, f"logs={given.folder / str(number)}"))
    return rows


def planned_memory(given: Given, name: str, words: Sequence[str]) -> list[Row]:
    config = composed(words)
    cell, store = build(config), Store(config.store)
    (stage,) = (s for s in cell.walk() if s.name == "sft")
    planned = estimate({s.key: (s, config) for s in store.missing(cell)}, store)[stage.key].memory
    store.ensure(stage, context_of(config, store, cell).run)
    peak = store.record(stage)["metrics"]["throughput"]["peak_memory_gb"]
    assert planned is not None, "a model of known shape has an estimate"
    wanted = planned.value / 1e9
    rows = [Row(f"peak memory, {name}", f"{peak:.2f} GB", "plan", f"{wanted:.2f} GB", peak / wanted)]
    if given.device == "cuda":
        gc.collect()
        left = torch.cuda.memory_allocated() / 1e6
        rows.append(Row(f"left on the device, {name}", f"{left:.0f} MB", ratio=left, at_most=100))
    return rows


def grid(given: Given) -> list[Row]:
    """Eight trainings of a small model on one device, one after the other and several at once."""
    seeds = ",".join(map(str, range(8 if given.shape == "mistral" else 2)))
    words = (*MODEL[given.shape], *BRANCH, "sft.max_steps=4", *given.trainer, "-m", f"seed={seeds}")
    seconds = {}
    for jobs in (1, 4, 8) if given.shape == "mistral" else (1, 2):
        launcher = ("hydra/launcher=joblib", f"hydra.launcher.n_jobs={jobs}") if jobs > 1 else ()
        seconds[jobs] = run_child(TRAIN, *words, *launcher, f"logs={given.folder / str(jobs)}").seconds
    one = seconds.pop(1)
    return [
        Row(
            f"{len(seeds.split(','))} trainings, {jobs} at once",
            f"{s:.1f} s",
            "one by one",
            f"{one:.1f} s",
            one / s,
        )
        for jobs, s in seconds.items()
    ]


# --- what a run has left -----------------------------------------------------------------------------


def trained(given: Given, logs: Path, words: Sequence[str]) -> Path:
    """The folder of the branch's stage that train.py leaves."""
    run_child(TRAIN, *given.trainer, *words, f"logs={logs}")
    (stage,) = (path.parent for path in (logs / "stages/sft").glob("*/stage.json"))
    return stage


def adapter(stage: Path) -> Path:
    return stage / "adapter" / NAME


def history(stage: Path) -> list[dict[str, Any]]:
    with (stage / "history.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row.get("train/loss")]


def factors(stage: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer -> its A and B."""
    stored = load_file(adapter(stage))
    return {n: (a, stored[n.replace("lora_A", "lora_B")]) for n, a in stored.items() if "lora_A" in n}


def of_deltas(a: dict[str, tuple[Tensor, Tensor]], b: dict[str, tuple[Tensor, Tensor]]) -> float:
    """Cosine of two deltas B A over all layers, from the factors alone."""

    def inner(x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor]) -> float:
        return float(((x[1].T @ y[1]).double() * (x[0] @ y[0].T).double()).sum())

    products = [sum(inner(x[n], y[n]) for n in x) for x, y in ((a, b), (a, a), (b, b))]
    return float(products[0] / (products[1] * products[2]) ** 0.5)
