"""The numbers printed in the paper, to stand beside ours: docs/paper_tables.csv."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paft.report.claims import Claim, Pick
from paft.report.row import Row

COLUMNS = ("table", "base", "paradigm", "preference", "sft_l1", "merge", "average")


def read_paper(path: Path) -> list[dict[str, Any]]:
    """The rows of the paper's Tables 1 and 4. Raises `ValueError` naming what the file lacks."""
    if not path.is_file():
        raise ValueError(
            f"there is no file {path}; the paper's numbers are in docs/paper_tables.csv of the repository"
        )
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if missing := [c for c in COLUMNS if c not in (reader.fieldnames or [])]:
            raise ValueError(f"{path} has no column {', '.join(missing)}; it has {reader.fieldnames}")
        rows = [r for r in reader if r["table"] in ("1", "4")]
    names = {"dare_ties": "dare"}
    return [{**r, "merge": names.get(r["merge"], r["merge"])} for r in rows]


def printed(paper: Sequence[Mapping[str, Any]], row: Row) -> dict[str, float]:
    """The paper's average of the same row of its tables, for each of its base models."""
    l1 = "" if row.weight is None else "yes" if row.weight else "no"
    place = (row.paradigm, row.preference, l1, row.merge)
    averages: dict[str, float] = {}
    for r in paper:
        if (r["paradigm"], r["preference"], r["sft_l1"], r["merge"]) == place:
            averages.setdefault(r["base"], float(r["average"]))
    return averages


def printed_effects(paper: Sequence[Mapping[str, Any]], claim: Claim, preference: str) -> dict[str, float]:
    """What the claim's least contrast is in the paper's own averages, for each base model that has all of them."""
    effects = {}
    for base in dict.fromkeys(r["base"] for r in paper):
        of_base = [r for r in paper if r["base"] == base]
        sums = [[(w, _average(of_base, pick, preference)) for w, pick in c] for c in claim.contrasts.values()]
        known = [sum(w * v for w, v in s if v is not None) for s in sums if all(v is not None for _, v in s)]
        if len(known) == len(sums):
            effects[base] = min(known)
    return effects


def _average(paper: Sequence[Mapping[str, Any]], pick: Pick, preference: str) -> float | None:
    if pick.column != "average":
        return None
    objective = "" if pick.paradigm == "sft" else preference
    weight = None if pick.paradigm == "preference" else 1.0 if pick.l1 else 0.0
    row = {"paradigm": pick.paradigm, "merge": pick.merge, "preference": objective, "lambda": weight}
    return next(iter(printed(paper, Row(row)).values()), None)
