"""Write the report over everything in a store: python -m paft.report [--store DIR] [--out DIR]."""

import argparse
from pathlib import Path

from paft.report.build import build_report, print_table


def main(arguments: list[str] | None = None) -> None:
    """Build, print every row; exits with code 2 where the store holds no finished evaluation."""
    parser = argparse.ArgumentParser(prog="python -m paft.report", description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("logs/stages"), help="folder of finished stages")
    parser.add_argument("--out", type=Path, default=Path("logs/report"), help="folder to write to")
    given = parser.parse_args(arguments)
    table = build_report(given.store, given.out)
    if not table:
        message = f"{given.store} holds no finished evaluation; run `python train.py` or give another --store"
        parser.exit(2, f"{message}\n")
    print_table(table, page=given.out / "index.html")


if __name__ == "__main__":
    main()
