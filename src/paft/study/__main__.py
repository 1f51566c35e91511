"""The second study's own commands; docs/study2.md has them in order.

python -m paft.study power                  what difference the study can find, by the first one's variances
python -m paft.study tuned                  the commands that score tuned merge weights on the test items
python -m paft.study analyse                every table and the figure, out of the files in docs/study2 alone
"""

import argparse
from pathlib import Path

from paft.report.build import write
from paft.report.saved import csv_bytes
from paft.report.table import require_rows
from paft.study.analysis import analyse
from paft.study.power import power_table
from paft.study.tuned import test_commands


def main(arguments: list[str] | None = None) -> None:
    """Do what the command line says; exits with code 2 and a message where it cannot be done."""
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        if given.command == "power":
            table = power_table(given.first / "gsm8k_hh")
            given.out.mkdir(parents=True, exist_ok=True)
            write(given.out / "power.csv", csv_bytes(table, list(table[0])))
            print(given.out / "power.csv")
        elif given.command == "tuned":
            print("\n".join(test_commands(require_rows(given.store), given.seeds)))
        else:
            print("\n".join(map(str, analyse(given.out, given.first))))
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m paft.study", description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True, title="commands", metavar="")
    for name, says in (("power", "the power calculation"), ("analyse", "tables and figure")):
        command = commands.add_parser(name, help=says)
        command.add_argument("--out", type=Path, default=Path("docs/study2"), help="the study's folder")
        command.add_argument(
            "--first", type=Path, default=Path("docs/study"), help="the first study's folder"
        )
    tuned = commands.add_parser("tuned", help="commands that score tuned weights")
    tuned.add_argument(
        "--store", type=Path, default=Path("logs/study2/stages"), help="folder of finished stages"
    )
    tuned.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    return parser


if __name__ == "__main__":
    main()
