"""A store of finished stages with invented numbers: real keys, real folders, no training."""

import csv
import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from paft.config import (
    DemoData,
    EvaluateConfig,
    L1Config,
    LoggerConfig,
    Paradigm,
    RunConfig,
    SFTConfig,
    StrategyConfig,
    TaskConfig,
    TinyModel,
    TrainerConfig,
)
from paft.files.jsonfile import write_json
from paft.graph.build import build
from paft.graph.stage import Stage
from paft.merge.methods import DareTies, Linear, Slerp, TaskArithmetic, Ties
from paft.objectives import DPO
from paft.store.store import Store

EVALUATE = EvaluateConfig(
    name="demo",
    tasks={
        "tool_call": TaskConfig("paft_tool_call", "exact_match,none"),
        "honesty": TaskConfig("paft_honesty", "acc,none"),
        "mmlu_dev": TaskConfig("paft_mmlu_dev", "acc,none"),
        "bits": TaskConfig("paft_mmlu_dev_cot", "bits", higher_is_better=False, in_average=False),
    },
)
ITEMS = 100
"""Of each invented task."""
PAFT = RunConfig(
    model=TinyModel(name="SmolLM2-135M"),
    data=DemoData(name="demo"),
    preference=DPO(lr=2e-4),
    merge=Ties(),
    evaluate=EVALUATE,
    trainer=TrainerConfig(),
    strategy=StrategyConfig(),
    logger=LoggerConfig(),
)


def with_lambda(config: RunConfig, weight: float) -> RunConfig:
    return replace(config, sft=SFTConfig(lr=1e-3, l1=L1Config(weight)))


def grid(*, merges: Sequence[Any] = (), lambdas: Sequence[float] = (0.0, 1e-4, 1e-3)) -> list[RunConfig]:
    """The paper's Table 1 on one model: every merge at every lambda, and all baselines."""
    merges = merges or [Linear(), DareTies(), Ties(), TaskArithmetic(), Slerp()]
    sparse = [with_lambda(PAFT, weight) for weight in lambdas]
    cells = [replace(c, merge=merge) for c in sparse for merge in merges]
    cells += [replace(c, paradigm=p) for c in sparse for p in (Paradigm.sft, Paradigm.sequential)]
    return cells + [replace(PAFT, paradigm=p) for p in (Paradigm.preference, Paradigm.base)]


def fill(root: Path, cells: Sequence[RunConfig], *, layers: int = 3) -> list[Stage]:
    """Finish every stage of the cells in the store at `root`; returns their evaluate stages."""
    store = Store(root)
    targets = [build(cell) for cell in cells]
    for target in targets:
        store.ensure(target, lambda stage, _, out: finish(stage, out, layers))
    return targets


def finish(stage: Stage, out: Path, layers: int) -> dict[str, Any]:
    draw = random.Random(stage.key)
    match stage.name:
        case "sft" | "preference":
            write_json(out / "sparsity.json", sparsity(stage))
            write_history(out / "history.csv", stage, draw)
        case "merge":
            write_json(out / "merge.json", merge_report(stage, layers, draw))
        case "evaluate":
            if "model" in stage.inputs:
                write_json(out / "merge.json", merge_report(stage.inputs["model"], layers, draw))
            write_json(out / "results.json", found := results(stage, draw))
            write_samples(out / "samples.jsonl", found["tasks"])
    return {}


def weight_of(stage: Stage) -> float:
    return next((s.config.branch.l1.weight for s in stage.walk() if s.name == "sft"), 0.0)


def sparsity(stage: Stage) -> dict[str, Any]:
    share = {0.0: 0.05, 1e-4: 0.81, 1e-3: 0.99}.get(weight_of(stage), 0.5) if stage.name == "sft" else 0.11
    means = {"share_below_1e-5": share, "hoyer": 0.22 + 0.5 * share}
    return {"layers": {"model.layers.0.mlp.up_proj.weight": means}, "mean_over_layers": means}


def merge_report(stage: Stage, layers: int, draw: random.Random) -> dict[str, Any]:
    weight, found = weight_of(stage), {}
    for layer in range(layers):
        for module in ("self_attn.q_proj", "mlp.up_proj"):
            conflict = 0.45 / (1 + 2e3 * weight) + 0.02 * math.sin(layer / 3) + draw.uniform(-0.01, 0.01)
            found[f"model.layers.{layer}.{module}.weight"] = {
                "cosine": 0.1 / (1 + 1e3 * weight) + draw.uniform(-0.02, 0.02),
                "sign_conflict": max(0.0, conflict),
            }
    method = type(stage.config.method).__name__
    means = {"cosine": 0.05, "sign_conflict": 0.3, "rounded_back": 0.02}
    return {"method": method, "variant": f"{method.lower()} weights=1,1", "layers": found} | means


def results(stage: Stage, draw: random.Random) -> dict[str, Any]:
    learnt = len({s.name for s in stage.walk()} & {"sft", "preference"})
    tasks: dict[str, Any] = {}
    for name, task in stage.config.evaluate.tasks.items():
        value = (
            0.3 + 0.2 * learnt + draw.uniform(-0.06, 0.06)
            if task.higher_is_better
            else draw.uniform(0.8, 1.9)
        )
        value = round(value * ITEMS) / ITEMS
        tasks[name] = {"task": task.task, "metric": task.metric, "score": value, "stderr": 0.02}
        tasks[name] |= {"higher_is_better": task.higher_is_better, "in_average": task.in_average}
    values = [t["score"] for t in tasks.values() if t["in_average"]]
    return {"tasks": tasks, "average": sum(values) / len(values) if values else None}


def write_samples(path: Path, tasks: dict[str, Any]) -> None:
    """Items that add up to each score; which of them are answered well follows their difficulty, loosely."""
    lines = []
    for name, task in tasks.items():
        hard = random.Random(name)
        order = sorted(range(ITEMS), key=lambda item: item + ITEMS * hard.random() / 2)
        right = dict.fromkeys(order[: round(task["score"] * ITEMS)], 1.0)
        for item in range(ITEMS):
            value: Any = right.get(item, 0.0)
            if not task["higher_is_better"]:
                value = [-math.log(2) * task["score"] * (50 + item), 50 + item]
            lines.append(json.dumps({"column": name, "item": item, "value": value}))
    path.write_text("\n".join(lines) + "\n")


def write_history(path: Path, stage: Stage, draw: random.Random, steps: int = 40) -> None:
    weight = weight_of(stage) if stage.name == "sft" else 0.0
    with path.open("w", newline="") as file:
        sft = ["train/l1", "train/sparsity"]
        pairs = ["train/chosen_rewards", "train/rejected_rewards", "train/accuracy"]
        names = ["step", "seconds", "train/loss", *(sft if stage.name == "sft" else pairs), "validation/loss"]
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for step in range(steps):
            decay, noise = math.exp(-step / 12), draw.uniform(-0.05, 0.05)
            row: dict[str, Any] = {"step": step, "seconds": 2.5 * step, "train/loss": 0.6 + 2 * decay + noise}
            if stage.name == "sft":
                row["train/l1"] = weight * 800 * step / steps
                row |= {"train/sparsity": 1 - decay} if step % 10 == 0 else {}
            else:
                gap = 1 - decay + noise
                row |= {"train/chosen_rewards": 0.3 * gap, "train/rejected_rewards": -0.8 * gap}
                row["train/accuracy"] = 0.5 + 0.4 * gap
            writer.writerow(row)
