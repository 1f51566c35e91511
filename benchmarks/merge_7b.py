"""Merges of two adapters (rank 16 and 128, all linear layers) into a checkpoint of Mistral-7B's shape.

    python benchmarks/merge_7b.py [--methods all] [--layers 32] [--folder DIR] [--quick] [--out DIR]

Each method is a process of its own: its whole time, and its peak memory. TIES by default, `all` for every method that
looks at deltas alone; those that look at rows (fisher, regmean, learned) are given by name, and then merge by random
statistics in the format of the stage before them, which is not timed: 56 GB for Fisher, 65 GB of Gram matrices.

The 14.5 GB of bfloat16 shards are random numbers, made in a temporary folder below DIR and deleted at the end, as is
everything else; 2.2 times their size must be free. The shards are copied with `cp` first. Both read from the disk
and end when their files are on it. One tensor is compared with TIES in plain torch. model_stock and sce refuse deltas
that have nothing in common: theirs are one adapter twice. Writes `benchmarks/merge_7b.json`. `--quick` has one layer of
a sixteenth of the widths, and a method of each kind.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from harness.process import CONTENDERS, Child, run_child
from harness.progress import Progress, new_parser, parse
from measure import Report, Row, publish
from merge import FEW, drop_from_cache, paft, synced

from paft.config import Statistic
from paft.merge.methods import METHODS

MISTRAL, STATISTICS, BY_DATA = (
    CONTENDERS / f"{name}.py" for name in ("mistral_shaped", "random_statistics", "merge_by_data")
)
LAYERS, QUICK_LAYERS, QUICK_NARROWER = 32, 1, 16
QUICK_METHODS = ("ties", "tsv", "model_stock", "fisher", "regmean", "learned")
OF_ONE_TASK = ("model_stock", "sce")
MAKING, COPYING, MERGING, CHECKING, MEASURING = 45, 30, 80, 10, 200
"""Seconds of 32 layers on two cores; of a merge those of TIES."""
BYTES_PER_LAYER, BYTES_BESIDE = 436_224_000, 524_296_192
ADAPTER_BYTES_PER_LAYER = 47_185_920
STATISTICS_BYTES_PER_LAYER = {
    Statistic.fisher: 1_744_830_464,
    Statistic.gram: 2_046_820_352,
    Statistic.coefficients: 0,
}
"""Of both branches, float32."""


def refuse_full_disk(
    parser: argparse.ArgumentParser, folder: Path, layers: int, methods: Sequence[str]
) -> None:
    """Exit unless there is room for base, adapters, statistics, and the copy or the merged model."""
    statistics = max(STATISTICS_BYTES_PER_LAYER[need] if (need := needs(m)) else 0 for m in methods)
    per_layer = 2 * BYTES_PER_LAYER + ADAPTER_BYTES_PER_LAYER + statistics
    needed = 2 * BYTES_BESIDE + layers * per_layer + 10**9
    free = shutil.disk_usage(folder).free
    if free < needed:
        parser.error(
            f"{folder} has {free / 1e9:.0f} GB free, {layers} layers need {needed / 1e9:.0f}; "
            "give another --folder, or fewer --layers"
        )


def needs(method: str) -> Statistic | None:
    return METHODS[method].needs


def listed(text: str) -> list[str]:
    """The methods of `--methods`, each once."""
    if text == "all":
        return [name for name in METHODS if needs(name) is None]
    methods = list(dict.fromkeys(text.split(",")))
    if unknown := [name for name in methods if name not in METHODS]:
        raise argparse.ArgumentTypeError(f"there is no method {unknown[0]!r}; there are {', '.join(METHODS)}")
    return methods


def announced(methods: Sequence[str], layers: int) -> list[float]:
    """Seconds of each part: inputs, copy, each method after what it needs, TIES with its check."""
    parts = [MAKING, COPYING]
    for method in methods:
        parts += [*([MEASURING] if needs(method) else []), MERGING, *([CHECKING] if method == "ties" else [])]
    return [seconds * layers / LAYERS for seconds in parts]


def command(method: str, folder: Path) -> list[str]:
    """The whole process of a merge into `folder / "paft"`."""
    if needs(method):
        return [sys.executable, str(BY_DATA), method, str(folder), str(folder / "paft")]
    return paft(method, folder, *(["--sft", str(folder / "preference")] if method in OF_ONE_TASK else []))


def measure(
    folder: Path, shape: tuple[int, int], methods: Sequence[str], progress: Progress, out: Path | None
) -> None:
    """Publishes what there is after every method: all of them may take an hour."""
    layers, narrower = shape
    progress.next("random checkpoint and adapters")
    run_child(MISTRAL, "make", folder, str(layers), str(narrower))
    size = size_of(folder / "base")
    files = [*folder.glob("*/*")]
    drop_from_cache(files)
    progress.next("copy")
    copy = run_child(*synced(["cp", "-r", str(folder / "base"), str(folder / "copy")], folder / "copy"))
    shutil.rmtree(folder / "copy")
    rows, details = [], {}
    for method in methods:
        child = merged(method, folder, shape, progress)
        rows += rows_of(method, f"{layers} layers, {size / 1e9:.1f} GB", size, copy, child)
        if method == "ties":
            progress.next("one tensor in plain torch")
            details["difference"] = checked(folder)
        shutil.rmtree(folder / "paft")
        publish(Report("merge_7b", rows, {"layers": layers, "bytes": size, **details}), out)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def merged(method: str, folder: Path, shape: tuple[int, int], progress: Progress) -> Child:
    """The merge into `folder / "paft"`. Raises `ValueError` for one that is not as large as its base."""
    need = needs(method)
    if need:
        progress.next(f"random statistics for {method}")
        run_child(STATISTICS, need.value, folder, *map(str, shape))
    drop_from_cache([path for path in folder.rglob("*") if path.is_file()])
    progress.next(method)
    child = run_child(*synced(command(method, folder), folder / "paft"))
    if need:
        shutil.rmtree(folder / need.value)
    if size_of(folder / "paft") != size_of(folder / "base"):
        raise ValueError(f"{method} wrote {size_of(folder / 'paft')} bytes of {size_of(folder / 'base')}")
    return child


def checked(folder: Path) -> dict[str, float]:
    difference: dict[str, float] = run_child(MISTRAL, "check", folder, folder / "paft").result
    if not difference["share"] <= FEW:
        raise ValueError(f"PAFT's TIES differs from plain torch in {difference['share']:.2g} of the elements")
    return difference


def rows_of(method: str, what: str, size: int, copy: Child, child: Child) -> list[Row]:
    """A row a method; of TIES, which has figures to reach, one of its time and one of its memory."""

    def rate(of: Child) -> str:
        return f"{of.seconds:.1f} s, {size / of.seconds / 1e9:.2f} GB/s"

    title, peak = METHODS[method].title, f"{child.peak_mb:.0f} MB"
    against, ratio = ("cp + sync, from disk", rate(copy)), child.seconds / copy.seconds
    note = "one adapter twice" if method in OF_ONE_TASK else ""
    note = "by random statistics, from disk" if needs(method) else note
    if method != "ties":
        return [Row(f"{title}, {what}", f"{rate(child)}, {peak}", *against, ratio, note=note)]
    gigabytes = child.peak_mb * 2**20 / 1e9
    return [
        Row(f"{title}, {what}: time", rate(child), *against, ratio, at_most=3),
        Row(f"{title}, {what}: peak, GB", peak, "", "", gigabytes, at_most=2.5),
    ]


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    said = f"all, or with commas between {', '.join(METHODS)} (default ties)"
    parser.add_argument("--methods", type=listed, metavar="NAMES", help=said)
    given = parse(parser)
    layers, narrower = (QUICK_LAYERS, QUICK_NARROWER) if given.quick else (given.layers, 1)
    methods = given.methods or (QUICK_METHODS if given.quick else ("ties",))
    if not given.quick:
        refuse_full_disk(parser, given.folder, layers, methods)
    progress = Progress("merge_7b", announced(methods, layers), quick=given.quick)
    with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
        measure(Path(temporary), (layers, narrower), methods, progress, given.out)


if __name__ == "__main__":
    main()
