"""The report over everything in a store, and comparisons within it.

    python -m paft.report                                write tables, pictures and index.html, print every cell
    python -m paft.report compare A B                    two cells, or two sweeps cell by cell
    python -m paft.report items A B                      two evaluations item by item: what changed, in texts
    python -m paft.report ask QUESTIONS.csv              many such comparisons, corrected together
    python -m paft.report wandb                          the same report in W&B, or its JSON where there is no key
    python -m paft.report docs FILE.md                   fill the tables of a Markdown file from such a report
    python -m paft.report save                           results.csv, items.csv and stages.csv alone, all of them text

A and B are keys, their beginnings, or selectors such as lambda=1e-4,merge=ties.
"""

import argparse
import shlex
from functools import partial
from pathlib import Path
from typing import Any

from paft.config import Wandb
from paft.report import changes, markdown, questions
from paft.report.build import Report, save, write, write_report
from paft.report.compare import compare
from paft.report.saved import csv_bytes
from paft.report.table import require_rows
from paft.report.terminal import print_answers, print_changes, print_comparison, print_table

PAPER = Path("docs/paper_tables.csv")
STORE = "folder of finished stages (logs/stages), or of a report with its items.parquet or items.csv"
RAW = argparse.RawDescriptionHelpFormatter


def main(arguments: list[str] | None = None) -> None:
    """Do what the command line says; exits with code 2 and a message where it cannot be done."""
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        if given.command == "compare":
            print_comparison(compare(given.store, given.left, given.right), given.left, given.right)
        elif given.command == "items":
            _items(given)
        elif given.command == "ask":
            _ask(given)
        elif given.command == "wandb":
            from paft.report.wandb_report import publish

            print(f"W&B report: {publish(given.store, given.out, Wandb(given.project, given.entity))}")
        elif given.command == "save":
            print(f"{given.out}: {save(given.store, given.out)} evaluations")
        elif given.command == "docs":
            _fill(given.file, check=given.check)
        else:
            _report(given)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m paft.report", description=__doc__, formatter_class=RAW)
    parser.add_argument("--store", type=Path, default=Path("logs/stages"), help=STORE)
    parser.add_argument("--out", type=Path, default=Path("logs/report"), help="folder to write to")
    beside = f"show the paper's numbers beside, by default those of {PAPER}"
    parser.add_argument("--paper", type=Path, nargs="?", const=PAPER, metavar="FILE", help=beside)
    axes = "the columns of the Pareto picture: the SFT skill, the preference skill, what should be retained"
    parser.add_argument("--skills", type=_three, metavar="A,B,C", help=axes)
    commands = parser.add_subparsers(dest="command", title="commands", metavar="")
    add = partial(_command, commands)
    pair = add("compare", "differences of two cells or two sweeps")
    texts = add("items", "which items two evaluations did not answer alike", out=changes.PAGE)
    for sides in (pair, texts):
        sides.add_argument("left", metavar="A")
        sides.add_argument("right", metavar="B")
    texts.add_argument("--column", help="this one alone")
    shown = "items of a column in the terminal (3)"
    texts.add_argument("--show", type=int, default=3, metavar="N", help=shown)
    listed = add("ask", "a list of comparisons", questions.__doc__, out="comparisons.csv")
    listed.add_argument("file", type=Path, metavar="QUESTIONS.csv")
    add("save", "scores and their items as text", out="results.csv, items.csv and stages.csv")
    text = commands.add_parser(
        "docs", help="tables of a Markdown file", description=markdown.__doc__, formatter_class=RAW
    )
    text.add_argument("file", type=Path, metavar="FILE.md")
    text.add_argument(
        "--check", action="store_true", help="write nothing; fail if a table is not what its file holds"
    )
    online = add("wandb", "save the report in W&B", out="wandb_report.json")
    online.add_argument("--project", default=Wandb.project, help="the project the cells' runs are in")
    online.add_argument("--entity", help="by default your own")
    return parser


def _command(commands: Any, name: str, says: str, description: str | None = None, *, out: str = "") -> Any:
    """A command that reads a store, and writes the file `out`; what stands before its name counts for it too."""
    parser = commands.add_parser(name, help=says, description=description, formatter_class=RAW)
    parser.add_argument("--store", type=Path, default=argparse.SUPPRESS, help=STORE)
    if out:
        parser.add_argument("--out", type=Path, default=argparse.SUPPRESS, help=f"folder for {out}")
    return parser


def _three(text: str) -> list[str]:
    names = text.split(",")
    if len(names) != 3:
        raise argparse.ArgumentTypeError(f"it takes three columns with commas between, got {text!r}")
    return names


def _fill(file: Path, *, check: bool) -> None:
    if not file.is_file():
        raise ValueError(f"there is no file {file}")
    text = markdown.filled(file)
    if check and text != file.read_text(encoding="utf-8"):
        command = f"python -m paft.report docs {shlex.quote(str(file))}"
        raise ValueError(f"tables of {file} are not what their files hold; run `{command}`")
    if not check:
        write(file, text.encode())


def _items(given: argparse.Namespace) -> None:
    changed = changes.changed_items(given.store, given.left, given.right, given.column)
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / changes.PAGE
    write(file, changes.page(changed, given.left, given.right).encode())
    print_changes(changed, given.left, given.right, show=given.show, page=file)


def _ask(given: argparse.Namespace) -> None:
    if not given.file.is_file():
        raise ValueError(f"there is no file {given.file}")
    answers = questions.answers(given.store, questions.read_questions(given.file))
    print_answers(answers)
    if all(row["why"] for row in answers):
        raise ValueError(
            f"{given.store} answers none of the questions of {given.file}, for the reasons above; those of "
            "docs/study.md need its stores: `make study`, `make study-gsm8k-hh`"
        )
    given.out.mkdir(parents=True, exist_ok=True)
    write(given.out / "comparisons.csv", csv_bytes(answers, list(answers[0])))


def _report(given: argparse.Namespace) -> None:
    report = Report(given.store, require_rows(given.store))
    write_report(report, given.out, paper=given.paper, skills=given.skills)
    print_table(report.cells, store=given.store, page=given.out / "index.html")
    if given.paper:
        print("The paper's numbers stand beside on the page; the terminal shows ours alone.")


if __name__ == "__main__":
    main()
