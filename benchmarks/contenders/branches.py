"""The three objectives as both sides are told to train them, and how often each training is run.

Imported by the scripts of `benchmarks/`; the other files here are what they start in processes of their own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from harness.process import CONTENDERS, Child, run_child
from harness.progress import Progress

CONSTANT = ("schedule=constant", "warmup_ratio=0", "lr=2e-4")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One objective: how PAFT is told to train it, and what is to be reached against TRL."""

    name: str
    branch: str
    unit: str
    batch: int
    """Rows of a global batch."""
    speed: float
    """TRL's rate times this is to be reached."""
    overrides: tuple[str, ...]
    steps: int = 6
    warmup: int = 2
    """The first steps of them, which are not timed."""
    best: tuple[str, ...]
    """Arguments of TRL's config that make it the fastest, of those that leave the loss as it is."""
    arguments: tuple[str, ...] = ()
    """Of TRL's config in every run."""

    @property
    def peer(self) -> str:
        return f"TRL {self.name.upper()}Trainer"

    def quick(self) -> "Part":
        """The same on the tiny model, whose tokens are bytes."""
        lengths = (f"data.{self.branch}.max_length=512", f"data.{self.branch}.max_prompt_length=448")
        words = ("model=tiny", "model.dtype=bfloat16", *lengths)
        return replace(self, steps=3, warmup=1, overrides=(*self.overrides, *words))


SFT = Part(
    name="sft",
    branch="sft",
    unit="tokens",
    batch=8,
    speed=5,
    overrides=("paradigm=sft", "lambda=0"),
    best=("per_device_train_batch_size=2", "gradient_accumulation_steps=4"),
)
DPO = Part(
    name="dpo",
    branch="preference",
    unit="pairs",
    batch=4,
    speed=6,
    overrides=("paradigm=preference", "preference=dpo", "preference.beta=0.1"),
    best=("per_device_train_batch_size=1", "gradient_accumulation_steps=4"),
    arguments=("precompute_ref_log_probs=true",),
)
ORPO = Part(
    name="orpo",
    branch="preference",
    unit="pairs",
    batch=4,
    speed=5,
    overrides=("paradigm=preference", "preference=orpo"),
    # TRL averages over each micro-batch, so a smaller one would be another loss; without autocast the softmax
    # over the vocabulary is bfloat16, which moves the loss by less than `BFLOAT16`
    best=("bf16=false",),
)
PARTS = {part.name: part for part in (SFT, DPO, ORPO)}


def paft(action: str, part: Part, folder: Path, rows: Path | None, *extra: str) -> Child:
    """PAFT's `prepare` or `train` of the part; `extra` overrides come last."""
    settings = (f"global_batch_size={part.batch}", f"max_steps={part.steps}", *CONSTANT)
    settings_of_branch = (f"{part.branch}.{setting}" for setting in settings)
    words = (*data_overrides(part, rows), *part.overrides, *settings_of_branch, *extra)
    return run_child(CONTENDERS / "train_paft.py", action, folder, *words)


def data_overrides(part: Part, rows: Path | None) -> list[str]:
    """The first rows of the file, or as many embedded ones: just what the steps read."""
    count = part.steps * part.batch
    if rows is None:
        return ["data=demo", f"data.{part.branch}.num_rows={count}"]
    # the other branch is not read, but its path has to have a value
    paths = [f"data.{branch}.path='{rows.resolve()}'" for branch in ("sft", "preference")]
    lenient = [f"data.{part.branch}.{s}" for s in ("too_long=truncate", "bad_rows=drop", f"max_rows={count}")]
    return ["data=jsonl", *paths, *lenient]


def trl(part: Part, folder: Path, *arguments: str) -> Child:
    return run_child(CONTENDERS / "train_trl.py", part.name, folder / "job.json", *part.arguments, *arguments)


def step_seconds(part: Part, runs: list[Child], clock: str = "ends") -> list[float]:
    """Of each step after the warm-up, at its fastest: the runs are equal, so what is longer was disturbed.

    `clock` is "ends" or "processor", the time of all threads, which other work on the machine disturbs less.
    """
    return [min(times) for times in zip(*(measured_steps(part, run, clock) for run in runs), strict=True)]


def measured_steps(part: Part, run: Child, clock: str) -> list[float]:
    return [end - start for start, end in pairwise(run.result[clock][part.warmup - 1 :])]


def peak_mb(runs: list[Child]) -> float:
    return min(run.peak_mb for run in runs)


def in_turn(
    contenders: Mapping[str, Callable[[], Child]], rounds: int, progress: Progress
) -> dict[str, list[Child]]:
    """Every contender's runs, one of each after the other, so that a slow minute falls on all alike."""
    runs: dict[str, list[Child]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            progress.next(name)
            runs[name].append(run())
    return runs
