"""Training of SmolLM2-135M-Instruct against TRL's trainers: speed, share of the arithmetic limit, peak memory.

    python benchmarks/training.py [sft] [dpo] [orpo] [--only equal] [--sft-rows FILE] [--preference-rows FILE]
                                  [--rounds N] [--quick] [--out DIR]

Without files the rows are the embedded ones; the comparison is meant for GSM8K and HH (harmless), in any format
that `data=jsonl` reads. Each part takes about five minutes a round on two cores and writes `benchmarks/<part>.json`.

Both sides get the same tokens in the same global batches, the same LoRA factors to start from, AdamW at the same
constant rate, a bfloat16 base and float32 factors. Before any time is taken, `PROOF_STEPS` steps in float32 show
that losses agree to `FLOAT32`. In bfloat16 the first losses are held together to `BFLOAT16`; later ones drift
apart by rounding alone (TRL's own settings among themselves too, DPO's by several percent) and are kept in the file.

TRL runs with its defaults: bfloat16 autocast, rows padded to the longest. They include gradient checkpointing,
which is off except in the lines named so. `equal` has each step's rows as one micro-batch on both sides, and so
has `checkpointed`; `best` is PAFT as it is configured (`conf/trainer/cpu.yaml`) against the settings that were
found the fastest for TRL here. Step times leave out loading, data preparation and the first steps, `warmup`; peaks
are of whole processes. More rounds take the fastest of each step: use them where other work disturbs the machine.
`--quick` makes the comparison `equal` alone, unless `--only` names another, and proves the first part only.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from contenders.branches import PARTS, Part, in_turn, paft, peak_mb, step_seconds, trl
from harness.process import Child, Peak, installed, matrix_peak
from harness.progress import Progress, add_rounds, add_rows, new_parser, parse
from measure import Report, Row, publish, skipped

PROOF_STEPS, PROOF_BATCH = 2, 2
FLOAT32, BFLOAT16 = 1e-4, 1e-2
"""Relative differences of the losses that are allowed: of every step, of the first step."""
LIMIT, MEMORY = 0.55, 0.3
"""To be reached: share of the arithmetic limit, and of TRL's peak at most."""
PROOF_SECONDS = (8, 12, 15)
"""Of preparing, of PAFT and of TRL, on two cores; and below of one run, and of the machine's peak."""
PAFT_SECONDS, TRL_SECONDS, PEAK_SECONDS = 20, 75, 8
SAME = {"loss": "loss", "chosen_logps": "logps/chosen", "rejected_logps": "logps/rejected"}
"""What both sides log: PAFT's name and TRL's."""
ONE_MICRO_BATCH = ("trainer.micro_batch_size=1000000", "trainer.micro_batch_tokens=1000000")
Job = dict[str, Any]
Runs = list[Child]


def settings(part: Part, only: str | None = None) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Name of a comparison -> overrides of PAFT, arguments of TRL; of all, or of one."""
    every = {
        "equal": (ONE_MICRO_BATCH, ()),
        "best": ((), part.best),
        "checkpointed": (
            (*ONE_MICRO_BATCH, "trainer.gradient_checkpointing=true"),
            ("gradient_checkpointing=true",),
        ),
    }
    return {only: every[only]} if only else every


def announced(part: Part, rounds: int, only: str | None, *, proof: bool) -> list[float]:
    """Seconds of each process that `compare` starts."""
    runs, peers = [PAFT_SECONDS] * len(settings(part, only)), installed("trl")
    runs += [TRL_SECONDS] * len(runs) if peers else []
    peak = [PEAK_SECONDS] if part.branch == "sft" else []
    return [*(PROOF_SECONDS if proof and peers else ()), PROOF_SECONDS[0], *runs * rounds, *peak]


def compare(
    part: Part, rows: Path | None, rounds: int, progress: Progress, only: str | None, *, proof: bool
) -> Report:
    """Run both sides and tabulate them; raises `ValueError` if their losses are not those of one training."""
    report, peers = Report(part.name), installed("trl")
    report.details["differences"] = {"float32": prove(part, rows, progress)} if proof and peers else {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        progress.next("data")
        paft("prepare", part, folder, rows)
        job: Job = json.loads((folder / "job.json").read_text())
        named = settings(part, only).items()
        contenders = {
            f"paft {name}": partial(paft, "train", part, folder, rows, *ours) for name, (ours, _) in named
        }
        contenders |= {
            f"trl {name}": partial(trl, part, folder, *theirs) for name, (_, theirs) in named if peers
        }
        runs = in_turn(contenders, rounds, progress)
    if part.branch == "sft":
        progress.next("arithmetic limit")
        peak = matrix_peak()
        report.rows += [
            limit_row(part, job, name, runs[f"paft {name}"], peak)
            for name, _ in named
            if name != "checkpointed"
        ]
    for name, _ in named if peers else ():
        ours, theirs = runs[f"paft {name}"], runs[f"trl {name}"]
        found = report.details["differences"][name] = differences(ours[0], theirs[0])
        refuse_other_losses(part, {key: values[:1] for key, values in found.items()}, BFLOAT16)
        report.rows += rows_against_trl(part, name, job, ours, theirs)
    report.rows += [] if peers else [skipped(part.peer, "trl")]
    report.details |= {"rows": str(rows or "embedded"), "job": {k: v for k, v in job.items() if k != "rows"}}
    report.details["runs"] = {name: [asdict(run) for run in children] for name, children in runs.items()}
    return report


# --- the same training -------------------------------------------------------------------------------


def prove(part: Part, rows: Path | None, progress: Progress) -> dict[str, list[float]]:
    """The differences of a short training in float32; raises `ValueError` if they are more than rounding."""
    small = (f"{part.branch}.max_steps={PROOF_STEPS}", f"{part.branch}.global_batch_size={PROOF_BATCH}")
    with tempfile.TemporaryDirectory() as folder:
        words = (part, Path(folder), rows, "model.dtype=float32", *small)
        progress.next("data of the proof in float32")
        paft("prepare", *words)
        progress.next("paft in float32")
        ours = paft("train", *words)
        progress.next("trl in float32")
        found = differences(ours, trl(part, Path(folder), "bf16=false"))
    refuse_other_losses(part, found, FLOAT32)
    return found


def differences(ours: Child, theirs: Child) -> dict[str, list[float]]:
    """PAFT's name of what both log -> |ours / theirs - 1| at every step."""
    steps = list(zip(ours.result["logs"], theirs.result["logs"], strict=True))
    names = [name for name, peer in SAME.items() if name in steps[0][0] and peer in steps[0][1]]
    return {name: [abs(a[name] / b[SAME[name]] - 1) for a, b in steps] for name in names}


def refuse_other_losses(part: Part, found: dict[str, list[float]], tolerance: float) -> None:
    for name, values in found.items():
        if not max(values) <= tolerance:  # NaN is no agreement either
            raise ValueError(
                f"{part.name}: {name} of PAFT and {part.peer} differ by {values} at their steps, more than "
                f"{tolerance:g}: not the same training, so there is nothing to compare"
            )


# --- rows of the table -------------------------------------------------------------------------------


def rate(part: Part, job: Job, runs: Runs, unit: str) -> float:
    """Real tokens, pairs or FLOPs a second over the steps after the warm-up."""
    return float(sum(job[unit][part.warmup :]) / sum(step_seconds(part, runs)))


def rate_with_reference(part: Part, job: Job, runs: Runs, unit: str) -> float:
    """The same, each unit bearing its part of the seconds that the reference log-probabilities took.

    PAFT's are those of a whole stage, loading the model included.
    """
    seconds = min(run.result["seconds"].get("reference", 0.0) for run in runs)
    return 1 / (1 / rate(part, job, runs, unit) + seconds / sum(job[unit]))


def limit_row(part: Part, job: Job, name: str, runs: Runs, peak: Peak) -> Row:
    tokens, reached = (rate(part, job, runs, unit) for unit in ("tokens", "flops"))
    limit = f"{tokens * peak.flops_per_second / reached:.0f} tokens/s"
    return Row(
        f"share of limit, {name}",
        f"{tokens:.0f} tokens/s",
        str(peak),
        limit,
        reached / peak.flops_per_second,
        at_least=LIMIT,
    )


def rows_against_trl(part: Part, name: str, job: Job, ours: Runs, theirs: Runs) -> list[Row]:
    """Speed and peak; what is to be reached holds where neither side recomputes activations."""
    least, most = (None, None) if name == "checkpointed" else (part.speed, MEMORY)

    def speed(what: str, of: Callable[[Part, Job, Runs, str], float], at_least: float | None) -> Row:
        a, b = (of(part, job, runs, part.unit) for runs in (ours, theirs))
        shown = f"{a:.3g} {part.unit}/s", part.peer, f"{b:.3g} {part.unit}/s"
        return Row(f"{what}, {name}", *shown, ratio=a / b, at_least=at_least)

    table = [speed(f"{part.unit}/s", rate, least)]
    if part.name == "dpo":
        table.append(speed("pairs/s with reference", rate_with_reference, None))
    a, b = peak_mb(ours), peak_mb(theirs)
    return [*table, Row(f"peak memory, {name}", f"{a:.0f} MB", part.peer, f"{b:.0f} MB", a / b, at_most=most)]


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, "all"], default="all")
    add_rows(parser, "sft", "preference")
    add_rounds(parser, 1)
    parser.add_argument("--only", choices=["equal", "best", "checkpointed"], help="one of the comparisons")
    chosen = parse(parser)
    parts = [part for part in PARTS.values() if part.name in chosen.parts or "all" in chosen.parts]
    only = chosen.only or ("equal" if chosen.quick else None)
    proof = {part.name: part is parts[0] or not chosen.quick for part in parts}
    seconds = [announced(part, chosen.rounds, only, proof=proof[part.name]) for part in parts]
    progress = Progress("training", [*chain(*seconds)], quick=chosen.quick)
    for part in parts:
        rows = chosen.sft_rows if part.branch == "sft" else chosen.preference_rows
        sized = part.quick() if chosen.quick else part
        publish(compare(sized, rows, chosen.rounds, progress, only, proof=proof[part.name]), chosen.out)


if __name__ == "__main__":
    main()
