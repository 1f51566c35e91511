"""Merge two LoRA adapters into SmolLM2-135M-Instruct, whole process: PAFT, mergekit, peft, and copying the checkpoint.

    python benchmarks/merge.py [--rounds 3] [--quick] [--out DIR]

First every method is compared with mergekit, and the plain sum with peft's `cat`, on two float32 layers of the same
widths; only then is anything timed. mergekit has its cache of applied adapters warm. peft's other ways are timed and
not compared: `linear` combines the factors, hence adds cross terms, and `*_svd` cuts the merged delta to rank 16.
Copying is measured twice: files in the page cache and no sync, and files dropped from the cache and synced after;
PAFT's TIES under the same conditions. PAFT's own merges go without their proof, which the others have not. Writes
`benchmarks/merge.json`. `--quick` has TIES and peft's `cat` alone.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.process import CONTENDERS, Child, installed, run_child
from harness.progress import Progress, add_rounds, new_parser, parse
from measure import Report, Row, publish, skipped

METHODS = ("linear", "task_arithmetic", "slerp", "ties", "dare_ties")
PEFT = ("linear", "cat", "ties_svd", "dare_ties_svd")
QUICK_METHODS, QUICK_PEFT = ("ties",), ("cat",)
DIFFERENCE = CONTENDERS / "merge_difference.py"
TOLERANCE = 5e-7
"""Of float32 weights: mergekit subtracts weights of up to 0.1 from each other, we multiply factors."""
FEW = 1e-4
"""Share of weights that may differ more: a last place decides whether a value reaches the threshold of TIES, and
which sign two opposite values elect."""


def paft(method: str, folder: Path, *options: str) -> list[str]:
    places = {name: folder / name for name in ("base", "sft", "preference")} | {"out": folder / "paft"}
    words = [word for name, path in places.items() for word in (f"--{name}", str(path))]
    return [sys.executable, "-m", "paft.merge", "--method", method, "--no-prove", *words, *options]


def mergekit(method: str, folder: Path, density: float = 0.5) -> list[str]:
    """The same merge in mergekit's words. Its `slerp` is ours with `--space full`."""
    parts = {name: f"{folder / 'base'}+{folder / name}" for name in ("sft", "preference")}
    own: dict[str, float] = {} if method == "slerp" else {"weight": 1.0}
    own |= {"density": density} if "ties" in method else {}
    recipe: dict[str, Any] = {
        "merge_method": method,
        "dtype": "float32",
        "models": [{"model": part, "parameters": own} for part in parts.values()],
    }
    if folder.name != "small":
        recipe["out_dtype"] = "bfloat16"
    if method == "slerp":
        recipe |= {"base_model": parts["sft"], "parameters": {"t": 0.5}}
    elif method != "linear":
        recipe["base_model"] = str(folder / "base")
    path = folder / f"{method}.json"
    path.write_text(json.dumps(recipe))
    tool = Path(sys.executable).with_name("mergekit-yaml")
    cache = ["--lora-merge-cache", str(folder / "cache")]
    return [str(tool), str(path), str(folder / "mergekit"), *cache]


def peft(combination: str, folder: Path) -> list[str]:
    return [sys.executable, str(CONTENDERS / "merge_peft.py"), combination, str(folder), str(folder / "peft")]


def refuse_other_results(
    small: Path, methods: Sequence[str], progress: Progress
) -> dict[str, dict[str, float]]:
    """How far the weights of each pair of equal merges are apart. Raises `ValueError` above `FEW`."""
    # masks are drawn from different streams: DARE is compared without dropping
    pairs: dict[str, tuple[list[str], list[str]]] = {
        "peft cat": (paft("task_arithmetic", small), peft("cat", small))
    }
    for method in methods if installed("mergekit") else ():
        options = {"slerp": ["--space", "full"], "dare_ties": ["--density", "1"]}.get(method, [])
        pairs[f"mergekit {method}"] = (
            paft(method, small, *options),
            mergekit(method, small, 1.0 if method == "dare_ties" else 0.5),
        )
    found = {}
    for name, (ours, theirs) in pairs.items():
        progress.next(f"is PAFT's result that of {name}")
        theirs_in = small / name.split()[0]
        for command, out in ((ours, small / "paft"), (theirs, theirs_in)):
            shutil.rmtree(out, ignore_errors=True)
            run_child(*command)
        found[name] = run_child(DIFFERENCE, small / "paft", theirs_in, str(TOLERANCE)).result
        if not found[name]["share"] <= FEW:
            raise ValueError(
                f"{found[name]['share']:.2g} of PAFT's weights differ from {name}'s by more than {TOLERANCE}; "
                f"at most {FEW} may"
            )
    return found


@dataclass(frozen=True)
class Fastest:
    """Runs a command several times, each time into a fresh folder."""

    rounds: int
    progress: Progress

    def __call__(
        self, what: str, command: list[str], out: Path, prepare: Callable[[], None] = lambda: None
    ) -> Child:
        """The fastest run, with the largest peak."""
        self.progress.next(what)
        runs = []
        for _ in range(self.rounds):
            shutil.rmtree(out, ignore_errors=True)
            prepare()
            runs.append(run_child(*command))
        return Child(min(run.seconds for run in runs), max(run.peak_mb for run in runs), {})


def text(child: Child) -> str:
    return f"{child.seconds:.2f} s, {child.peak_mb:.0f} MB"


def against(what: str, ours: Child, name: str, theirs: Child, *, bars: bool) -> list[Row]:
    measured, reference = text(ours), text(theirs)
    faster, smaller = theirs.seconds / ours.seconds, ours.peak_mb / theirs.peak_mb
    return [
        Row(f"{what}: times faster", measured, name, reference, faster, at_least=6 if bars else None),
        Row(f"{what}: share of memory", measured, name, reference, smaller, at_most=0.4 if bars else None),
    ]


def peer_rows(
    folder: Path, ours: Mapping[str, Child], methods: Sequence[str], ways: Sequence[str], best: Fastest
) -> list[Row]:
    rows = []
    if installed("mergekit"):
        best.progress.next("mergekit applies the adapters")
        run_child(*mergekit("linear", folder))  # fills its cache
    for method in methods:
        if installed("mergekit"):
            theirs = best(f"mergekit {method}", mergekit(method, folder), folder / "mergekit")
            ours_like = ours["slerp (full)" if method == "slerp" else method]
            rows += against(method, ours_like, f"mergekit {method}", theirs, bars=True)
        else:
            rows.append(skipped(f"mergekit {method}", "mergekit"))
    for combination in ways:
        method = {"cat": "task_arithmetic"}.get(combination, combination.removesuffix("_svd"))
        best.progress.next(f"peft {combination}")
        theirs = run_child(*peft(combination, folder))
        rows += against(method, ours[method], f"peft {combination}", theirs, bars=False)
    return rows


def copy_rows(folder: Path, ties: Child, best: Fastest) -> list[Row]:
    """TIES against `cp`, with everything in the page cache, and from and to the disk."""

    def drop() -> None:
        drop_from_cache([*(folder / "base").glob("*"), *folder.glob("*/adapter_model.safetensors")])

    copy, merge = ["cp", "-rL", str(folder / "base"), str(folder / "copy")], paft("ties", folder)
    warm = best("cp", copy, folder / "copy")
    cold_copy = best("cp from disk", synced(copy, folder / "copy"), folder / "copy", drop)
    cold_ties = best("ties from disk", synced(merge, folder / "paft"), folder / "paft", drop)
    start = best("start-up", [sys.executable, "-c", "import paft.merge.__main__"], folder / "none")
    torch = best("import torch", [sys.executable, "-c", "import torch"], folder / "none")
    disk, cache = "cp + sync, read from disk", "cp, in the page cache"
    return [
        Row(
            "ties, from and to disk", text(cold_ties), disk, text(cold_copy),
            cold_ties.seconds / cold_copy.seconds, at_most=3,
        ),
        Row("ties, in the page cache", text(ties), cache, text(warm), ties.seconds / warm.seconds),
        Row("start-up alone", text(start), cache, text(warm), start.seconds / warm.seconds),
        Row("(import torch, which PAFT's merge avoids)", text(torch), cache, text(warm), torch.seconds / warm.seconds),
    ]  # fmt: skip


def drop_from_cache(files: Iterable[Path]) -> None:
    """So that they are read from the disk; what other files still have to be written is written first."""
    os.sync()
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def synced(command: list[str], out: Path) -> list[str]:
    return ["sh", "-c", 'out=$1; shift; "$@" && sync "$out"/*', "sh", str(out), *command]


def announced(methods: Sequence[str], ways: Sequence[str], rounds: int) -> list[float]:
    """Seconds of each part on two cores: inputs, comparisons, PAFT, copies, mergekit, peft."""
    peers = len(methods) if installed("mergekit") else 0
    ours, copies = len(METHODS) + 1, 5
    timed = [1.5 * rounds] * (ours + copies) + ([12.0] if peers else []) + [10.0 * rounds] * peers
    return [15, *[12] * (1 + peers), *timed, *[19] * len(ways)]


def measure(methods: Sequence[str], ways: Sequence[str], model: str, best: Fastest) -> Report:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        best.progress.next("inputs")
        run_child(CONTENDERS / "merge_inputs.py", folder, model)
        differing = refuse_other_results(folder / "small", methods, best.progress)
        commands = {method: paft(method, folder) for method in METHODS}
        commands["slerp (full)"] = paft("slerp", folder, "--space", "full")
        ours = {name: best(name, command, folder / "paft") for name, command in commands.items()}
        own = [Row(f"{name} (PAFT)", text(child)) for name, child in ours.items()]
        rows = own + copy_rows(folder, ours["ties"], best) + peer_rows(folder, ours, methods, ways, best)
    return Report("merge", rows, {"differences": differing, "tolerance": TOLERANCE})


def main() -> None:
    parser = new_parser(__doc__)
    add_rounds(parser, 3)
    given = parse(parser)
    methods, ways = (QUICK_METHODS, QUICK_PEFT) if given.quick else (METHODS, PEFT)
    rounds, model = (1, "tiny") if given.quick else (given.rounds, "smollm2_135m")
    progress = Progress("merge", announced(methods, ways, rounds), quick=given.quick)
    publish(measure(methods, ways, model, Fastest(rounds, progress)), given.out)


if __name__ == "__main__":
    main()
