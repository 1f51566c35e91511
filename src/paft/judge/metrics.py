"""The figures of AlpacaEval 2 from judgements, in percent as its leaderboard writes them.

The win rate is the mean of the preferences, and its error that of a mean; the length-controlled rate is alpaca-eval's
own function (Dubois et al. 2024, arXiv:2404.04475), a logistic regression on which model it is, how much longer its
answer is and how hard the instruction is, asked about answers of equal length.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paft.judge.outputs import DRAW, Row
from paft.judge.package import length_controlled, length_data, require_rate

FEWEST = 5
"""Judgements that the regression's cross-validation needs."""
TOLD = {"generator_1": "reference", "generator_2": "model", "annotator": "judge"}
"""What the function asks of a row beside its answers and preference; it would name a file of weights."""


def shares(annotations: Sequence[Row]) -> list[float]:
    """How far each judged answer is preferred to the reference's, in [0, 1]; those that could not be read are left
    out, as alpaca-eval leaves them out."""
    values = [row["preference"] for row in annotations]
    return [(DRAW if value == 0 else value) - 1 for value in values if value is not None]


def win_rate(annotations: Sequence[Row]) -> dict[str, Any]:
    """`win_rate`, its `standard_error` (None of a single judgement), the same counted as wins, and the counts.

    Raises `ValueError` where nothing was judged.
    """
    won = shares(annotations)
    if not won:
        raise ValueError("none of the judgements has a preference, so there is no win rate")
    wins, losses = sum(share > 0.5 for share in won), sum(share < 0.5 for share in won)
    return {
        "win_rate": 100 * mean(won),
        "standard_error": percent(standard_error(won)),
        "discrete_win_rate": 100 * (wins + (len(won) - wins - losses) / 2) / len(won),
        "n_wins": wins,
        "n_wins_base": losses,
        "n_draws": len(won) - wins - losses,
        "n_total": len(won),
    }


def length_controlled_rate(
    annotations: Sequence[Row], data: Path | None
) -> tuple[dict[str, float], list[float]]:
    """`length_controlled_winrate` and `lc_standard_error`, and the share of each judgement that they are the mean of.

    Rows are numbered as they stand in `annotations`, which is how alpaca-eval finds the difficulty of each. Raises
    `ValueError` saying in one sentence why there is none: the package, its data, or too few judgements.
    """
    import pandas as pd

    require_rate()
    file = length_data(data)
    names = ("output_1", "output_2", "preference")
    frame = pd.DataFrame([TOLD | {name: row[name] for name in names} for row in annotations])
    judged = len(shares(annotations))
    if judged < FEWEST:
        raise ValueError(f"the length-controlled rate needs {FEWEST} judgements at least, got {judged}")
    with length_controlled(file) as rate:
        try:
            figures = rate(frame, save_weights_dir=None, is_warn_extreme_changes=False)
        except (LookupError, ValueError, TypeError, AssertionError) as error:
            raise ValueError(
                f"alpaca-eval's length-controlled rate failed: {type(error).__name__}: {error}"
            ) from error
    rates = {name: float(figures[name]) for name in ("length_controlled_winrate", "lc_standard_error")}
    return rates, [float(p) for p in frame["glm_preference"]]


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean of independent values; None of a single one."""
    if len(values) < 2:
        return None
    centre = mean(values)
    return math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (len(values) - 1) / len(values))


def percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
