"""Whether what is measured of two deltas before they are merged says how well the merged model does.

For each seed the cells of one merge are ranked by a measure and by an outcome; the rank correlation (Spearman's) of the
two is one number a seed, and its mean over seeds has the t interval of independent trainings. Cells of one seed share
that seed's branches, so they count once, however many they are.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy import stats

from paft.report.norms import TITLES
from paft.report.row import Row, finite
from paft.report.statistics import Arm, estimate, holm

MEASURES = ("shared", "sign_conflict", "conflict_of_shared", "cosine", "overlap", "sft_norm", "delta_l2")
OUTCOMES = ("average", "gsm8k_choice", "hh_reward")
LEAST = 4
"""Cells of a seed of which a rank correlation is taken."""


def predictors(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A row for each norm, measure and outcome: `rho` with its 95 % interval, p, and p after Holm's correction.

    `rows` are the seeds of the cells that are ranked: of one merge, on the same items.
    """
    table = [
        row
        for norm in dict.fromkeys(r.norm for r in rows)
        for measure in MEASURES
        for outcome in OUTCOMES
        if (row := _correlation([r for r in rows if r.norm == norm], norm, measure, outcome))
    ]
    for row, p in zip(table, holm([row["p"] for row in table]), strict=True):
        row["p_corrected"] = p
    return table


def _correlation(rows: Sequence[Row], norm: str, measure: str, outcome: str) -> dict[str, Any] | None:
    ranked = list(_by_seed(rows, measure, outcome))
    constant = any(len(set(values)) == 1 for pair in ranked for values in pair)  # which ranks none
    if len(ranked) < 2 or constant:
        return None
    rhos = np.array([float(stats.spearmanr(x, y).statistic) for x, y in ranked])
    mean = estimate([Arm(rhos)])
    # where all seeds agree exactly, their sign is all that tells
    agreed = float(stats.binomtest(len(rhos), len(rhos)).pvalue) if mean.value else 1.0
    sizes = sorted({len(x) for x, _ in ranked})
    return {
        "norm": TITLES[norm],
        "measure": measure,
        "outcome": outcome,
        "rho": mean.value,
        "low": mean.low,
        "high": mean.high,
        "p": mean.p if mean.stderr else agreed,
        "num_seeds": len(ranked),
        "num_cells": "-".join(map(str, sizes)),
    }


def _by_seed(rows: Sequence[Row], measure: str, outcome: str) -> Iterator[tuple[list[float], list[float]]]:
    """(values of the measure, of the outcome) of the cells of each seed that has both of enough of them."""
    pairs: dict[int | None, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        x, y = finite(row.get(measure)), finite(row.get(outcome))
        if x is not None and y is not None:
            pairs[row.seed].append((x, y))
    for _, own in sorted(pairs.items(), key=lambda pair: str(pair[0])):
        if len(own) >= LEAST:
            yield [x for x, _ in own], [y for _, y in own]
