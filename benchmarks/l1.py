"""What the L1 penalty adds to an SFT step of SmolLM2-135M-Instruct: time and peak memory.

    python benchmarks/l1.py [--sft-rows FILE] [--rounds N] [--quick] [--out DIR]

The same training with lambda 0 and 1e-4, in turn, each run a process of its own. A few percent are less than what
two runs differ by on a shared machine, so each step counts with its fastest time over all rounds, and the noise
beside it is what is left between the odd and the even rounds without a penalty. Writes `benchmarks/l1.json`.
"""

import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path

from contenders.branches import SFT, Part, in_turn, paft, peak_mb, step_seconds
from harness.process import Child
from harness.progress import Progress, add_rounds, add_rows, new_parser, parse
from measure import Report, Row, publish

WITHOUT, WITH = "lambda=0", "lambda=1e-4"
PREPARE_SECONDS, RUN_SECONDS = 12, 25
QUICK_ROUNDS = 2
"""The fewest that have noise."""


def main() -> None:
    parser = new_parser(__doc__)
    add_rows(parser, "sft")
    add_rounds(parser, 4)
    chosen = parse(parser)
    part, rounds = (SFT.quick(), QUICK_ROUNDS) if chosen.quick else (SFT, chosen.rounds)
    seconds = [PREPARE_SECONDS, *[RUN_SECONDS] * (2 * rounds)]
    progress = Progress("l1", seconds, quick=chosen.quick)
    with tempfile.TemporaryDirectory() as temporary:
        words = (part, Path(temporary), chosen.sft_rows)
        progress.next("data")
        paft("prepare", *words)
        contenders = {name: partial(paft, "train", *words, name) for name in (WITHOUT, WITH)}
        runs = in_turn(contenders, rounds, progress)
    refuse_other_start(runs[WITHOUT][0], runs[WITH][0])
    both = runs[WITHOUT], runs[WITH]
    rows = [
        time_row(part, "step time", "ends", *both),
        time_row(part, "processor time", "processor", *both),
        memory_row(*both),
    ]
    details = {name: [asdict(run) for run in children] for name, children in runs.items()}
    publish(Report("l1", rows, details), chosen.out)


def refuse_other_start(without: Child, penalised: Child) -> None:
    """At step 0 the delta is zero and so is its penalty: both runs start from one loss, and later one pays."""
    a, b = without.result["logs"][0]["loss"], penalised.result["logs"][0]["loss"]
    if abs(a / b - 1) > 1e-6 or not penalised.result["logs"][-1].get("l1", 0.0) > 0:
        raise ValueError(
            f"l1: the first losses are {a} and {b}, or no penalty was logged; not the same training"
        )


def time_row(part: Part, what: str, clock: str, without: list[Child], penalised: list[Child]) -> Row:
    a, b = (sum(step_seconds(part, runs, clock)) for runs in (penalised, without))
    steps = len(step_seconds(part, without))
    shown = f"{a / steps:.3f} s", WITHOUT, f"{b / steps:.3f} s"
    return Row(
        f"added {what}, share", *shown, ratio=a / b - 1, at_most=0.03, note=noise(part, without, clock)
    )


def noise(part: Part, runs: list[Child], clock: str) -> str:
    if len(runs) < 2:
        return ""
    odd, even = (sum(step_seconds(part, half, clock)) for half in (runs[::2], runs[1::2]))
    return f"noise {abs(odd / even - 1):.1%}"


def memory_row(without: list[Child], penalised: list[Child]) -> Row:
    a, b = peak_mb(penalised), peak_mb(without)
    return Row("added peak memory, MB", f"{a:.0f} MB", WITHOUT, f"{b:.0f} MB", ratio=a - b, at_most=100)


if __name__ == "__main__":
    main()
