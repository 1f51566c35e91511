"""The paper's claims in the first study and in the second: one line a claim."""

from collections.abc import Mapping, Sequence
from typing import Any

from paft.report.numbers import DASH, p_value, short, signed

Tests = Sequence[Mapping[str, Any]]
"""Rows of claims.csv."""


def claims_beside(studies: Mapping[str, tuple[Tests, float]]) -> list[dict[str, str]]:
    """Columns `claim` and `preference`, and of each study, by its title, what it says: verdict, effect in percentage
    points, p after its own correction. Of a claim about a lambda that at the lambda given."""
    by_study = {
        title: {(t["claim"], t["preference"]): t for t in tests if t["lambda"] in (None, weight)}
        for title, (tests, weight) in studies.items()
    }
    asked = dict.fromkeys(key for found in by_study.values() for key in found)
    return [
        {"claim": claim, "preference": preference}
        | {title: _said(found.get((claim, preference))) for title, found in by_study.items()}
        for claim, preference in asked
        if any(_tested(found.get((claim, preference))) for found in by_study.values())
    ]


def _tested(test: Mapping[str, Any] | None) -> bool:
    return test is not None and test["p_corrected"] is not None


def _said(test: Mapping[str, Any] | None) -> str:
    if test is None or not _tested(test):
        return DASH
    weight = "" if test["lambda"] is None else f", λ {short(test['lambda'])}"
    return f"{test['verdict']}: {signed(test['effect'])} (p {p_value(test['p_corrected'])}{weight})"
