"""What the L1 penalty adds to an SFT step of SmolLM2-135M-Instruct: time and peak memory.

    python benchmarks/l1.py [--sft-rows FILE] [--rounds N]

The same training with lambda 0 and 1e-4, in turn, each run a process of its own. A few percent are less than what
two runs differ by on a shared machine, so each step counts with its fastest time over all rounds, and the noise
beside it is what is left between the odd and the even rounds without a penalty. Writes `benchmarks/l1.json`.
"""

import argparse
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path

from contenders.branches import SFT, add_options, in_turn, paft, peak_mb, step_seconds
from measure import Child, Report, Row, publish

WITHOUT, WITH = "lambda=0", "lambda=1e-4"


def main() -> None:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    add_options(parser, "sft", rounds=4)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        words = (SFT, Path(temporary), chosen.sft_rows)
        paft("prepare", *words)
        runs = in_turn(
            {name: partial(paft, "train", *words, name) for name in (WITHOUT, WITH)}, chosen.rounds
        )
    refuse_other_start(runs[WITHOUT][0], runs[WITH][0])
    both = runs[WITHOUT], runs[WITH]
    rows = [
        time_row("step time", "ends", *both),
        time_row("processor time", "processor", *both),
        memory_row(*both),
    ]
    publish(Report("l1", rows, {name: [asdict(run) for run in children] for name, children in runs.items()}))


def refuse_other_start(without: Child, penalised: Child) -> None:
    """At step 0 the delta is zero and so is its penalty: both runs start from one loss, and later one pays."""
    a, b = without.result["logs"][0]["loss"], penalised.result["logs"][0]["loss"]
    if abs(a / b - 1) > 1e-6 or not penalised.result["logs"][-1].get("l1", 0.0) > 0:
        raise ValueError(
            f"l1: the first losses are {a} and {b}, or no penalty was logged; not the same training"
        )


def time_row(what: str, clock: str, without: list[Child], penalised: list[Child]) -> Row:
    a, b = (sum(step_seconds(runs, clock)) for runs in (penalised, without))
    steps = len(step_seconds(without))
    shown = f"{a / steps:.3f} s", WITHOUT, f"{b / steps:.3f} s"
    return Row(f"added {what}, share", *shown, ratio=a / b - 1, at_most=0.03, note=noise(without, clock))


def noise(runs: list[Child], clock: str) -> str:
    if len(runs) < 2:
        return ""
    odd, even = (sum(step_seconds(half, clock)) for half in (runs[::2], runs[1::2]))
    return f"noise {abs(odd / even - 1):.1%}"


def memory_row(without: list[Child], penalised: list[Child]) -> Row:
    a, b = peak_mb(penalised), peak_mb(without)
    return Row("added peak memory, MB", f"{a:.0f} MB", WITHOUT, f"{b:.0f} MB", ratio=a - b, at_most=100)


if __name__ == "__main__":
    main()
