"""What `plan=true` says beforehand against what then happens, on SmolLM2-135M-Instruct; and how soon it says it.

    python benchmarks/plan.py [sft] [dpo] [orpo] [start] [--quick] [--out DIR]

Each branch is planned and run twice in a store of its own: a short training while the store is empty, so that time
rests on assumed figures, then a longer one of another seed, when the plan can go by the first. Every training is a
process of its own and is followed by a short evaluation. Compared are the seconds of each stage and the peak memory
of the training; `ratio` is the larger figure over the smaller. The note tells the peak a training measured: where
other work slows one of two runs down, it shows there. The part `start` times the plan itself. All of it takes about
four minutes on two cores. `--quick` has the branch sft, with an empty store, and the start.
"""

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import hydra
from harness.process import BENCHMARKS, run_child
from harness.progress import Progress, new_parser, parse
from measure import Report, Row, publish

from paft.command.compose import register_schemas, to_config
from paft.config import RunConfig
from paft.graph.build import build
from paft.graph.stage import Stage
from paft.plan.estimate import Estimate
from paft.plan.table import estimate
from paft.store.store import Store

ROOT = BENCHMARKS.parent
TRAIN = ROOT / "train.py"
COMMON = ("callbacks=none", "logger=csv", "trainer.progress_bar=false")
BRANCHES = {
    "sft": ("paradigm=sft",),
    "dpo": ("paradigm=preference", "preference=dpo"),
    "orpo": ("paradigm=preference", "preference=orpo"),
}
SHORT = ("seed=1", "sft.max_steps=8", "preference.max_steps=8", "evaluate.limit=16")
LONG = ("seed=2", "sft.max_steps=40", "preference.max_steps=24", "evaluate.limit=48")
RUNS = {"empty store": SHORT, "after a shorter run": LONG}
QUICK = ("experiment=smoke", "sft.max_steps=2", "evaluate.limit=1")
SECONDS = {"empty store": 30, "after a shorter run": 65, "start": 8}
"""Of each part, on two cores."""
WITHIN = 1.25
REPEATS = 5
START = (
    "import json, sys; from paft.command.main import main; "
    "sys.argv = ['train.py', 'plan=true', 'logs={logs}']; main(); "
    "print(json.dumps({{'torch': 'torch' in sys.modules}}))"
)


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("parts", nargs="*", choices=[*BRANCHES, "start", "all"], default="all")
    given = parse(parser)
    asked = ["sft", "start"] if given.quick else [*BRANCHES, "start"]
    parts = asked if "all" in given.parts else given.parts
    runs = {"empty store": QUICK} if given.quick else RUNS
    titles = [title for part in parts for title in (["start"] if part == "start" else runs)]
    progress = Progress("plan", [SECONDS[title] for title in titles], quick=given.quick)
    report = Report("plan")
    for part in parts:
        with tempfile.TemporaryDirectory() as folder:
            if part == "start":
                progress.next("start")
                report.rows.append(start_up(Path(folder), 1 if given.quick else REPEATS))
                continue
            for title, size in runs.items():
                progress.next(f"{part}, {title}")
                words = (*BRANCHES[part], *COMMON, f"logs={folder}", *size)
                report.rows += compare(f"{part}, {title}", words, report)
    publish(report, given.out)


def compare(title: str, words: tuple[str, ...], report: Report) -> list[Row]:
    """Plan, run, and hold the stages that ran against the plan."""
    config = compose(words)
    cell, store = build(config), Store(config.store, verify=False)
    planned = estimate({s.key: (s, config) for s in store.missing(cell)}, store)
    run_child(TRAIN, *words)
    rows = [row for s in cell.walk() if s.key in planned for row in compared(title, s, store, planned[s.key])]
    report.details[title] = {s.name: store.record(s)["metrics"].get("throughput") for s in cell.walk()}
    return rows


def compared(title: str, stage: Stage, store: Store, planned: Estimate) -> list[Row]:
    record = store.record(stage)
    seconds, seen = record["run"]["seconds"], record["metrics"].get("throughput", {})
    rows = []
    if stage.name not in ("data", "merge") and planned.seconds:
        share = f"{seen['share_of_peak']:.0%} of {seen['peak_tflops']:.2f} TFLOP/s" if seen else ""
        rows.append(against(f"{title}: {stage.name} seconds", seconds, planned.seconds.value, "s", share))
    if seen and planned.memory:
        rows.append(
            against(f"{title}: {stage.name} memory", seen["peak_memory_gb"], planned.memory.value / 1e9, "GB")
        )
    return rows


def against(what: str, measured: float, planned: float, unit: str, note: str = "") -> Row:
    ratio = max(measured / planned, planned / measured)
    shown = f"{measured:.3g} {unit}", "plan", f"{planned:.3g} {unit}"
    return Row(what, *shown, ratio=ratio, at_most=WITHIN, note=note)


def start_up(logs: Path, repeats: int) -> Row:
    """Median seconds of `python train.py plan=true`, which must not load torch."""
    loaded: dict[str, Any] = run_child(sys.executable, "-c", START.format(logs=logs)).result
    if loaded != {"torch": False}:
        raise RuntimeError(f"plan=true must load no torch, but: {loaded}")
    seconds = statistics.median(run_child(TRAIN, "plan=true", f"logs={logs}").seconds for _ in range(repeats))
    return Row("train.py plan=true, no torch", f"{seconds:.2f} s", "bar", "2 s", seconds / 2, at_most=1.0)


def compose(words: tuple[str, ...]) -> RunConfig:
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return to_config(hydra.compose("train", overrides=list(words)))


if __name__ == "__main__":
    register_schemas()
    main()
