"""A list of comparisons asked of a store at once, corrected together: comparisons.csv.

A list is a CSV file with the columns topic, question, both, left, right, columns. `left` and `right` are selectors as
in `python -m paft.report compare`, `both` is added to each of them, `columns` are names with blanks between; where
the sides are measured by different columns, as the sparsity of either branch, `sft_hoyer:preference_hoyer`.
"""

import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paft.report.backends import mixed
from paft.report.columns import MEASURES, Column, score_columns
from paft.report.compare import match, over_pairs
from paft.report.items import Scores
from paft.report.row import Row
from paft.report.selection import select
from paft.report.statistics import Estimate, holm
from paft.report.table import require_rows

log = logging.getLogger("paft")

FIELDS = ("topic", "question", "both", "left", "right", "columns")


@dataclass(frozen=True)
class Question:
    """What is compared: two selections of cells, and a column of each."""

    topic: str
    text: str
    left: str
    right: str
    left_column: str
    right_column: str

    @property
    def column(self) -> str:
        same = self.left_column == self.right_column
        return self.left_column if same else f"{self.left_column} - {self.right_column}"


def read_questions(path: Path) -> list[Question]:
    """One question for each row and column named in it. Raises `ValueError` with the row that is not as it must be."""
    questions = []
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            if tuple(row) != FIELDS or None in row.values():
                raise ValueError(f"{path}, row {number}: the columns must be {', '.join(FIELDS)}, got {row}")
            left, right = (",".join(filter(None, (row["both"], row[side]))) for side in ("left", "right"))
            for name in row["columns"].split():
                mine, _, theirs = name.partition(":")
                questions.append(Question(row["topic"], row["question"], left, right, mine, theirs or mine))
    if not questions:
        raise ValueError(f"{path} asks nothing: give it rows of {', '.join(FIELDS)}")
    return questions


Answer = dict[str, Any]
"""One row of comparisons.csv."""


def answers(store: Path, questions: Sequence[Question]) -> list[Answer]:
    """One row a question in its order: either side's mean over pairs of cells, their difference, its 95 % interval
    and its p after Holm's correction over all of them; in percentage points, or in the column's own unit.

    A question that the store cannot answer says why.
    """
    table = require_rows(store)
    scores = Scores(store, table)
    columns = {c.name: c for c in score_columns(table)} | MEASURES
    answered = [_answer(q, table, columns, scores) for q in questions]
    tested = [row for row in answered if row["p"] is not None]
    for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_corrected"] = p
    return answered


def _answer(question: Question, table: Sequence[Row], columns: dict[str, Column], scores: Scores) -> Answer:
    row: Answer = {"topic": question.topic, "question": question.text, "column": question.column}
    row |= dict.fromkeys(("left", "right", "difference", "stderr", "low", "high", "p", "p_corrected"))
    row |= {"num_pairs": 0, "num_items": None, "num_seeds": 0, "why": ""}
    row |= {"selects_left": question.left, "selects_right": question.right, "evaluate_keys": ""}
    try:
        pairs, _, _ = match(select(table, question.left), select(table, question.right))
        row |= _difference(question, pairs, columns, scores)
    except ValueError as error:
        row["why"] = str(error)
    return row


def _difference(
    question: Question,
    pairs: Sequence[tuple[list[Row], list[Row]]],
    columns: dict[str, Column],
    scores: Scores,
) -> Answer:
    for name in (question.left_column, question.right_column):
        if name not in columns:
            raise ValueError(f"there is no column {name!r}; there are {', '.join(columns)}")
    column = columns[question.left_column]
    left, right, apart = over_pairs(pairs, question.left_column, question.right_column, scores)
    if left is None or right is None or apart is None:
        raise ValueError(f"some of the cells have no {question.column}")
    for caution in mixed(r for pair in pairs for cell in pair for r in cell):
        log.warning("%s: %s", question.text, caution)
    means = {"left": column.scaled(left.value), "right": column.scaled(right.value)}
    keys = dict.fromkeys(r["evaluate_key"] for pair in pairs for cell in pair for r in cell)
    return means | _flat(apart, column) | {"num_pairs": len(pairs), "evaluate_keys": " ".join(keys)}


def _flat(e: Estimate, column: Column) -> Answer:
    scaled = {"difference": e.value, "stderr": e.stderr, "low": e.low, "high": e.high}
    sizes = {"p": e.p, "num_items": e.num_items, "num_seeds": e.num_seeds}
    return {name: column.scaled(value) for name, value in scaled.items()} | sizes
