"""What every benchmark's command line has, and what a benchmark says while it runs."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from harness.process import BENCHMARKS

QUICK_SECONDS = 5.0


class Progress:
    """Says on stderr which part of a benchmark begins and how long all of them are likely to take yet.

    `seconds` are what the parts take on two cores, in their order; from the second part on the estimate goes by
    how long the parts so far took. Parts of `quick` are taken to be alike.
    """

    def __init__(self, name: str, seconds: Sequence[float], *, quick: bool = False) -> None:
        self.name = name
        self.seconds = [QUICK_SECONDS] * len(seconds) if quick else list(seconds)
        self.begun = 0
        self.started = time.perf_counter()

    def next(self, what: str) -> None:
        """Call it before each part. Raises `IndexError` for more parts than were announced."""
        if self.begun == len(self.seconds):
            raise IndexError(f"{self.name} announced {self.begun} parts; {what} is one more")
        minutes = self.left() / 60
        self.begun += 1
        of_all = f"{self.begun}/{len(self.seconds)}"
        print(f"{self.name} {of_all}: {what}; about {minutes:.1f} min left", file=sys.stderr, flush=True)

    def left(self) -> float:
        """Seconds that the parts not yet begun are likely to take."""
        done, ahead = sum(self.seconds[: self.begun]), sum(self.seconds[self.begun :])
        pace = (time.perf_counter() - self.started) / done if done else 1.0
        return ahead * pace


def new_parser(description: str | None) -> argparse.ArgumentParser:
    """With `--quick` and `--out`, which every benchmark has."""
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=style)
    quick = "the same on a tiny random model in seconds: shows that it runs, its figures mean nothing"
    parser.add_argument("--quick", action="store_true", help=quick)
    out = "folder for its JSON file, by default benchmarks/; with --quick by default none"
    parser.add_argument("--out", type=Path, metavar="DIR", help=out)
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line; `out` is None where nothing is to be written."""
    chosen = parser.parse_args()
    if chosen.out is None and not chosen.quick:
        chosen.out = BENCHMARKS
    return chosen


def add_rounds(parser: argparse.ArgumentParser, default: int) -> None:
    """`--rounds N`, or ROUNDS in the environment, which `make bench ROUNDS=N` sets."""
    told = os.environ.get("ROUNDS") or str(default)
    text = f"runs of each; the fastest counts (default {default}, or ROUNDS)"
    parser.add_argument("--rounds", type=_positive, default=told, metavar="N", help=text)


def add_rows(parser: argparse.ArgumentParser, *branches: str) -> None:
    """`--sft-rows FILE`, `--preference-rows FILE`, or SFT_ROWS, PREFERENCE_ROWS in the environment."""
    for branch in branches:
        variable = f"{branch}_rows".upper()
        text = f"training rows as for data=jsonl (default the embedded ones, or {variable})"
        parser.add_argument(
            f"--{branch}-rows",
            type=_file,
            default=os.environ.get(variable) or None,
            metavar="FILE",
            help=text,
        )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"it takes a number of at least 1, got {text!r}")
    return int(text)


def _file(text: str) -> Path:
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text!r}; give rows in a format data=jsonl reads")
    return Path(text)
