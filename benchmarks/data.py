"""Conversations to tokens and labels: PAFT's data stage, its rows one by one, `datasets.map`, and TRL's preparation.

    python benchmarks/data.py [--rows N] [--sft-rows FILE] [--short-rows N] [--rounds N] [--quick] [--out DIR]

The rows are passages of Python's own documentation in four questions and four answers, about 1600 tokens; or those of
FILE. Everybody reads the same JSONL file and writes tokens and labels to the disk, on one core and on two, in a
process of its own; start-up is not counted. Tokens and labels are shown to be equal. PAFT also checks every row, twice.
Then the peak memory of PAFT's stage for a million short rows, and for a tenth of them. Writes `benchmarks/data.json`.
"""

import argparse
import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.process import CONTENDERS, Child, installed, run_child
from harness.progress import Progress, add_rounds, add_rows, new_parser, parse
from measure import Report, Row, publish, skipped

PREPARE = CONTENDERS / "prepare.py"
ROWS, SHORT_ROWS, QUICK_ROWS = 20_000, 1_000_000, 40
QUESTION, ANSWER = 500, 1300
"""Mean characters of a message."""
TITLES = {"rows": "row by row", "map": "datasets.map", "trl": "TRL SFTTrainer"}
TIMES, SLOWER, MEMORY_MB = 6.0, 1.5, 2048
SECONDS = {"paft": 20, "rows": 100, "map": 60, "trl": 150, "memory": 150}
"""Of one process on two cores."""


def conversation(rng: random.Random, text: str, turns: int, shorter: int = 1) -> dict[str, Any]:
    means = [("user", QUESTION // shorter), ("assistant", ANSWER // shorter)] * turns
    return {"messages": [{"role": role, "content": passage(rng, text, mean)} for role, mean in means]}


def passage(rng: random.Random, text: str, mean: int) -> str:
    """Of any length around the mean, without white space at its ends."""
    length = int(min(rng.lognormvariate(0, 0.7), 8) * mean / 1.27) + 10
    start = rng.randrange(len(text) - length)
    return text[start : start + length].strip() or "nothing"


def write(path: Path, rows: Iterator[dict[str, Any]]) -> Path:
    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def embedded(number: int, turns: int, shorter: int = 1) -> Iterator[dict[str, Any]]:
    from pydoc_data.topics import topics

    rng, text = random.Random(0), "\n".join(topics[name] for name in sorted(topics))
    return (conversation(rng, text, turns, shorter) for _ in range(number))


def of_file(path: Path, number: int) -> Iterator[dict[str, Any]]:
    from paft.config import FileSource
    from paft.data.sources import conversations

    rows = conversations(FileSource(path=str(path), max_rows=number), "train")
    return ({"messages": row.messages} for _, row in rows)


def fastest(name: str, cores: int, rows: Path, model: str, rounds: int) -> Child:
    """The fastest run. Two processes of `datasets.map` leave nothing to threads of the tokenizer."""
    threads = "true" if cores == 1 or name in ("paft", "rows") else "false"
    words = (PREPARE, name, model, rows, str(cores))
    runs = [run_child(*words, environment={"TOKENIZERS_PARALLELISM": threads}) for _ in range(rounds)]
    return min(runs, key=lambda run: float(run.result["seconds"]))


def compared(rows: Path, given: argparse.Namespace, progress: Progress) -> tuple[list[Row], dict[str, Any]]:
    """PAFT on one core and on all that are compared, against the others. Raises `ValueError` for other tokens."""
    runs: dict[tuple[str, int], Child] = {}
    for name, cores in contenders(quick=given.quick):
        progress.next(f"{name}, {cores} core{'s' * (cores > 1)}")
        runs[name, cores] = fastest(name, cores, rows, model_of(given), given.rounds)
    found = {key: run.result for key, run in runs.items()}
    if len({result["digest"] for result in found.values()}) > 1:
        raise ValueError(
            f"not everybody makes the same tokens and labels: {found}; there is nothing to compare"
        )
    table = []
    for (name, cores), theirs in found.items():
        if name == "paft":
            continue
        # what is row by row has no use for a second core
        for ours in (1, 2) if name == "rows" else (cores,):
            table.append(row_of(name, found["paft", ours], theirs, ours, cores))
    details = {
        f"{name}, {cores}": result | {"peak_mb": runs[name, cores].peak_mb}
        for (name, cores), result in found.items()
    }
    return table, details


def row_of(name: str, ours: dict[str, Any], theirs: dict[str, Any], cores: int, their_cores: int) -> Row:
    def shown(result: dict[str, Any]) -> str:
        return f"{result['seconds']:.1f} s, {result['tokens'] / result['seconds'] / 1e6:.2f} M tokens/s"

    words = (
        f"{ours['rows']} conversations, {ours['tokens'] / 1e6:.1f} M tokens, {cores} core{'s' * (cores > 1)}"
    )
    against = f"{TITLES[name]}, {their_cores} core{'s' * (their_cores > 1)}"
    if name == "map":
        ratio = ours["seconds"] / theirs["seconds"]
        return Row(f"{words}: share of time", shown(ours), against, shown(theirs), ratio, at_most=SLOWER)
    least = TIMES if name == "rows" and cores == 2 else None
    ratio = theirs["seconds"] / ours["seconds"]
    return Row(f"{words}: times faster", shown(ours), against, shown(theirs), ratio, at_least=least)


def memory_rows(folder: Path, number: int, given: argparse.Namespace, progress: Progress) -> list[Row]:
    peaks = {}
    for count in (number // 10, number):
        progress.next(f"peak memory of {count} short rows")
        rows = write(folder / "short.jsonl", embedded(count, turns=1, shorter=10))
        peaks[count] = fastest("paft", 2, rows, model_of(given), 1).peak_mb
    (few, low), (many, high) = peaks.items()
    return [
        Row(
            f"peak memory, {many} short rows",
            f"{high:.0f} MB",
            "bar",
            f"{MEMORY_MB} MB",
            high / MEMORY_MB,
            at_most=1,
        ),
        Row(f"peak memory, {many} short rows", f"{high:.0f} MB", f"{few} rows", f"{low:.0f} MB", high / low),
    ]


def contenders(*, quick: bool) -> list[tuple[str, int]]:
    """Who is run on how many cores."""
    names = [("paft", 1), ("paft", 2), ("rows", 1), ("map", 2), *([] if quick else [("map", 1)])]
    return [*names, ("trl", 2)] if installed("trl") else names


def model_of(given: argparse.Namespace) -> str:
    return "tiny" if given.quick else "smollm2_135m"


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--rows", type=int, default=ROWS, metavar="N", help=f"conversations (default {ROWS})")
    short_rows = f"for the peak memory (default {SHORT_ROWS})"
    parser.add_argument("--short-rows", type=int, default=SHORT_ROWS, metavar="N", help=short_rows)
    add_rows(parser, "sft")
    add_rounds(parser, 1)
    given = parse(parser)
    number, short = (QUICK_ROWS, QUICK_ROWS) if given.quick else (given.rows, given.short_rows)
    seconds = [SECONDS[name] * given.rounds for name, _ in contenders(quick=given.quick)]
    progress = Progress("data", [*seconds, SECONDS["memory"] / 10, SECONDS["memory"]], quick=given.quick)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = of_file(given.sft_rows, number) if given.sft_rows else embedded(number, turns=4)
        rows, details = compared(write(folder / "rows.jsonl", source), given, progress)
        if not installed("trl"):
            rows.append(skipped(TITLES["trl"], "trl"))
        rows += memory_rows(folder, short, given, progress)
    publish(Report("data", rows, details), given.out)


if __name__ == "__main__":
    main()
