"""TIES of two adapters (rank 16 and 128, all linear layers) into a checkpoint of Mistral-7B's shape, whole process.

    python benchmarks/merge_7b.py [--layers 32] [--folder DIR] [--quick] [--out DIR]

The 14.5 GB of bfloat16 shards are random numbers, made in a temporary folder below DIR and deleted at the end, as is
everything else; 2.2 times their size must be free. The shards are copied with `cp` first. Both read from the disk
and end when their files are on it. One tensor is compared with TIES in plain torch. Writes `benchmarks/merge_7b.json`.
`--quick` has one layer of a sixteenth of the widths.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from harness.process import CONTENDERS, Child, run_child
from harness.progress import Progress, new_parser, parse
from measure import Report, Row, publish
from merge import FEW, drop_from_cache, paft, synced

MISTRAL = CONTENDERS / "mistral_shaped.py"
LAYERS, QUICK_LAYERS, QUICK_NARROWER = 32, 1, 16
SECONDS = (45, 30, 80, 10)
"""Of making, copying, merging and checking 32 layers, on two cores."""
BYTES_PER_LAYER, BYTES_BESIDE = 436_224_000, 524_296_192
ADAPTER_BYTES_PER_LAYER = 47_185_920


def refuse_full_disk(parser: argparse.ArgumentParser, folder: Path, layers: int) -> None:
    """Exit unless there is room for base, adapters, and the copy or the merged model."""
    needed = 2 * (BYTES_BESIDE + layers * BYTES_PER_LAYER) + layers * ADAPTER_BYTES_PER_LAYER + 10**9
    free = shutil.disk_usage(folder).free
    if free < needed:
        parser.error(
            f"{folder} has {free / 1e9:.0f} GB free, {layers} layers need {needed / 1e9:.0f}; "
            "give another --folder, or fewer --layers"
        )


def measure(folder: Path, layers: int, narrower: int, progress: Progress) -> Report:
    progress.next("random checkpoint and adapters")
    run_child(MISTRAL, "make", folder, str(layers), str(narrower))
    size = sum(path.stat().st_size for path in (folder / "base").iterdir())
    files = [*folder.glob("*/*")]
    drop_from_cache(files)
    progress.next("copy")
    copy = run_child(*synced(["cp", "-r", str(folder / "base"), str(folder / "copy")], folder / "copy"))
    shutil.rmtree(folder / "copy")
    drop_from_cache(files)
    progress.next("ties")
    ties = run_child(*synced(paft("ties", folder), folder / "paft"))
    progress.next("one tensor in plain torch")
    difference = run_child(MISTRAL, "check", folder, folder / "paft").result
    if not difference["share"] <= FEW:
        raise ValueError(f"PAFT's TIES differs from plain torch in {difference['share']:.2g} of the elements")
    rows = rows_of(f"TIES, {layers} layers, {size / 1e9:.1f} GB", size, copy, ties)
    return Report("merge_7b", rows, {"layers": layers, "bytes": size, "difference": difference})


def rows_of(what: str, size: int, copy: Child, ties: Child) -> list[Row]:
    def rate(child: Child) -> str:
        return f"{child.seconds:.1f} s, {size / child.seconds / 1e9:.2f} GB/s"

    gigabytes = ties.peak_mb * 2**20 / 1e9
    return [
        Row(
            f"{what}: time",
            rate(ties),
            "cp + sync, from disk",
            rate(copy),
            ties.seconds / copy.seconds,
            at_most=3,
        ),
        Row(f"{what}: peak, GB", f"{ties.peak_mb:.0f} MB", "", "", gigabytes, at_most=2.5),
    ]


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    given = parse(parser)
    layers, narrower = (QUICK_LAYERS, QUICK_NARROWER) if given.quick else (given.layers, 1)
    if not given.quick:
        refuse_full_disk(parser, given.folder, layers)
    seconds = [second * layers / LAYERS for second in SECONDS]
    progress = Progress("merge_7b", seconds, quick=given.quick)
    with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
        publish(measure(Path(temporary), layers, narrower, progress), given.out)


if __name__ == "__main__":
    main()
