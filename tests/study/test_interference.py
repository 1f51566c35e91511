"""Whether a measure predicts the outcome: rank correlations within seeds, against scipy's over the same numbers."""

import numpy as np
import pytest
from scipy import stats

from paft.report.row import Row
from paft.study.predictors import LEAST, predictors

NUM_SEEDS, CELLS = 4, 6


def table(rng: np.random.Generator, noise: float, cells: int = CELLS) -> list[Row]:
    """Cells whose average falls with their sign conflict, and a cosine that is the same of all."""
    rows = []
    for seed in range(NUM_SEEDS):
        for _ in range(cells):
            conflict = rng.uniform(0, 0.5)
            average = 0.6 - conflict + noise * rng.standard_normal()
            columns = {
                "seed": seed,
                "norm": "preference",
                "sign_conflict": conflict,
                "cosine": 0.1,
                "average": average,
            }
            rows.append(Row(columns))
    return rows


def test_mean_rank_correlation_against_scipy():
    rows = table(np.random.default_rng(0), 0.1)

    (found,) = predictors(rows)

    by_seed = [
        stats.spearmanr(
            *([r[c] for r in rows if r.seed == s] for c in ("sign_conflict", "average"))
        ).statistic
        for s in range(NUM_SEEDS)
    ]
    expected = stats.ttest_1samp(by_seed, 0.0)
    assert (found["measure"], found["outcome"]) == ("sign_conflict", "average")
    assert found["rho"] == pytest.approx(np.mean(by_seed))
    assert found["p"] == found["p_corrected"] == pytest.approx(expected.pvalue)
    assert (found["low"], found["high"]) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert (found["num_seeds"], found["num_cells"]) == (NUM_SEEDS, str(CELLS))


def test_seeds_that_agree_exactly_are_judged_by_their_signs():
    (found,) = predictors(table(np.random.default_rng(0), 0.0))
    assert found["rho"] == -1
    assert found["p"] == pytest.approx(2 * 0.5**NUM_SEEDS)


def test_a_seed_with_few_cells_ranks_nothing():
    assert predictors(table(np.random.default_rng(0), 0.1, LEAST - 1)) == []
