"""Every table and the figure of the second study, made of its committed files.

The folder holds results.csv and items.csv (`python -m paft.report save`) and `questions/`: a list of comparisons for
each family, which are corrected together. Written beside them are a CSV file for each family, mixed.csv,
predictors.csv, claims.csv, claims_beside.csv and effects.png; a family whose cells are not there yet is left out.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from paft.report.build import Report, write
from paft.report.columns import MEASURES, score_columns
from paft.report.findings import flat
from paft.report.questions import Answer, Question, answers, read_questions
from paft.report.row import Row
from paft.report.saved import csv_bytes, read_csv
from paft.report.selection import select
from paft.report.statistics import holm
from paft.study.beside import claims_beside
from paft.study.figure import effects
from paft.study.mixed import Mixed
from paft.study.predictors import predictors

log = logging.getLogger("paft")

CONFIRMATORY = ("equal", "own")
"""Families that the mixed model checks, and the figure shows with `skills`."""
EVALUATION = "study2_skills (test)"
"""What the cells of the paper's claims are scored by."""
FIRST = {"first study, embedded data": "demo", "first study, GSM8K and HH": "gsm8k_hh"}
"""Title -> folder of its claims.csv."""
FIRST_LAMBDA, LAMBDA = 1e-4, 2e-4
"""Of the claims: what leaves most of a delta below 1e-5, in each study."""


def analyse(folder: Path, first: Path) -> list[Path]:
    """Write all that can be made of the study in `folder`, `first` being the first study's; returns the files.

    Raises `ValueError` for a folder without results.csv and items.csv, and for questions that cannot be read.
    """
    report = Report(folder)
    families = dict(_families(folder))
    tables: dict[str, Sequence[Mapping[str, Any]]] = {**families}
    asked = {
        name: read_questions(folder / f"questions/{name}.csv") for name in CONFIRMATORY if name in families
    }
    tables["mixed"] = [row for name, own in asked.items() for row in mixed(report, own, name)]
    tables["predictors"] = predictors(_ranked(report.table))
    tables["claims"] = [
        flat(finding)
        for study in report.studies
        if study.scope.evaluate == EVALUATION
        for finding in study.findings
    ]
    tables["claims_beside"] = _beside(tables["claims"], first)
    written = []
    for name, table in tables.items():
        if table:
            written.append(folder / f"{name}.csv")
            write(written[-1], csv_bytes(table, list(table[0])))
    shown = [row for name in (*CONFIRMATORY, "skills") for row in families.get(name, [])]
    if figure := effects(shown):
        written.append(folder / "effects.png")
        figure.savefig(written[-1])
    return written


def _families(folder: Path) -> Iterator[tuple[str, list[Answer]]]:
    """(name, answers) of every list of questions of which any is answered."""
    for file in sorted((folder / "questions").glob("*.csv")):
        answered = answers(folder, read_questions(file))
        lacking = [row for row in answered if row["why"]]
        for row in lacking:
            log.warning("%s: %s: %s", file.stem, row["question"], row["why"])
        if len(lacking) < len(answered):
            yield file.stem, answered


def mixed(report: Report, questions: Sequence[Question], family: str) -> list[dict[str, Any]]:
    """Each question of a family about one column, by one mixed model of all its cells, beside the report's own.

    Cells are told apart by the words that select them. Raises `ValueError` for a word that selects several.
    """
    (column,) = {question.column for question in questions}
    words = list(dict.fromkeys(word for q in questions for word in (q.left, q.right)))
    cells = [_one_cell(report.table, word) for word in words]
    model = Mixed(cells, column, report.scores)
    scaled = ({c.name: c for c in score_columns(report.table)} | MEASURES)[column].scaled
    rows: list[dict[str, Any]] = []
    for question in questions:
        fit = model.difference(words.index(question.left), words.index(question.right))
        numbers = {name: scaled(getattr(fit, name)) for name in ("difference", "stderr", "low", "high")}
        rows.append({"family": family, "question": question.text, "column": column, **numbers, "p": fit.p})
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_corrected"] = p
    return rows


def _one_cell(table: Sequence[Row], word: str) -> list[Row]:
    found = select(table, word).cells
    if len(found) > 1:
        raise ValueError(f"a mixed model compares single cells, and {word} selects {len(found)}")
    return next(iter(found.values()))


def _ranked(table: Sequence[Row]) -> list[Row]:
    """The seeds of the cells whose outcomes are to be predicted: those of DPO that a sum without weights merges, each
    once."""
    ranked = [
        row
        for row in table
        if (row.merge, row.preference, row.get("preference.loss")) == ("task_arithmetic", "dpo", "sigmoid")
        and row.get("merge.weights") == "1.0,1.0"
        and str(row["evaluate"]).endswith("(test)")
    ]
    return list({row.key("merge"): row for row in ranked}.values())


def _beside(tests: Sequence[Mapping[str, Any]], first: Path) -> list[dict[str, str]]:
    studies: dict[str, tuple[Sequence[Mapping[str, Any]], float]] = {}
    for title, name in FIRST.items():
        file = first / name / "claims.csv"
        evaluated = "study" if name == "demo" else name
        rows = [r for r in read_csv(file) if r["evaluate"] == evaluated and r["limit"] is None]
        studies[title] = (rows, FIRST_LAMBDA)
    return claims_beside(studies | {"second study": (tests, LAMBDA)}) if tests else []
