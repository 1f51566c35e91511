"""The mixed model's contrasts against a likelihood maximised by hand, and against what the data were drawn with."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import optimize

from paft.evaluate.items import from_pairs
from paft.report.items import Scores
from paft.report.items_csv import items_csv
from paft.report.row import Row
from paft.study.mixed import Mixed, helmert

Answers = NDArray[np.float64]
"""By cell, item and seed."""


def drawn(seed: int, cells: int, items: int, seeds: int, spread: Sequence[float]) -> Answers:
    """Of the model, with no fixed differences; `spread` are the standard deviations of a, b, ka, kb and e."""
    rng = np.random.default_rng(seed)
    shapes = [(1, items, 1), (1, 1, seeds), (cells, items, 1), (cells, 1, seeds), (cells, items, seeds)]
    effects = [s * rng.standard_normal(shape) for s, shape in zip(spread, shapes, strict=True)]
    return 0.5 + np.asarray(sum(effects))


def mixed(answers: Answers, folder: Path) -> Mixed:
    """The model of the cells, of a saved report that has these answers."""
    cells, items, seeds = answers.shape
    keys = {(k, s): f"{k}-{s}" for k, s in product(range(cells), range(seeds))}
    rows = {
        (k, s): Row({"evaluate_key": key, "seed": s, "in_average": "skill", "skill": answers[k, :, s].mean()})
        for (k, s), key in keys.items()
    }
    given = {
        keys[k, s]: {
            "skill": from_pairs("task", [(f"{i:03}", float(answers[k, i, s]), 1.0) for i in range(items)])
        }
        for k, s in keys
    }
    (folder / "results.csv").touch()
    (folder / "items.csv").write_bytes(items_csv(list(rows.values()), given))
    scores = Scores(folder, list(rows.values()))
    return Mixed([[rows[k, s] for s in range(seeds)] for k in range(cells)], "skill", scores)


def restricted_maximum(answers: Answers) -> NDArray[np.float64]:
    """The covariance of the cells' means under the variances that maximise the restricted likelihood."""
    shape = answers.shape
    places = np.indices(shape).reshape(3, -1)
    same = [places[axis][:, None] == places[axis][None] for axis in range(3)]
    cell, item, seed = same
    parts = [item, seed, cell & item, cell & seed, cell & item & seed]
    fixed = np.eye(shape[0])[places[0]]
    y = answers.reshape(-1)

    def covariance(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(sum(np.exp(log) * part for log, part in zip(logs, parts, strict=True)))

    def cost(logs: NDArray[np.float64]) -> float:
        inverse = np.linalg.inv(covariance(logs))
        precision = fixed.T @ inverse @ fixed
        residual = y - fixed @ np.linalg.solve(precision, fixed.T @ inverse @ y)
        sign = -np.linalg.slogdet(inverse)[1] + np.linalg.slogdet(precision)[1]
        return float(sign + residual @ inverse @ residual)

    best = optimize.minimize(cost, np.log(np.full(5, 0.1)), method="L-BFGS-B", options={"ftol": 1e-13})
    inverse = np.linalg.inv(covariance(best.x))
    return np.asarray(np.linalg.inv(fixed.T @ inverse @ fixed))


@pytest.mark.parametrize("seed", range(3))
def test_contrasts_against_restricted_maximum_likelihood(seed, tmp_path):
    answers = drawn(seed, 3, 8, 4, (2.0, 2.0, 0.9, 0.9, 0.3))  # no estimate of a variance is negative

    fit = mixed(answers, tmp_path).difference(0, 2)

    covariance = restricted_maximum(answers)
    variance = covariance[0, 0] + covariance[2, 2] - 2 * covariance[0, 2]
    # the file has six digits of an answer, the optimiser stops at four of a variance
    assert fit.difference == pytest.approx(answers[0].mean() - answers[2].mean(), abs=1e-5)
    assert fit.stderr == pytest.approx(variance**0.5, rel=1e-3)
    assert fit.low < fit.difference < fit.high
    assert fit.high - fit.difference == pytest.approx(fit.difference - fit.low)


def test_intervals_cover_what_the_data_were_drawn_with(tmp_path):
    """Three standard errors of a share of 400 draws around 0.95 are 0.033."""
    covered = 0
    for seed in range(400):
        fit = mixed(drawn(seed, 4, 30, 5, (1.0, 0.3, 0.3, 0.1, 0.5)), tmp_path).difference(1, 3)
        covered += fit.low <= 0 <= fit.high
    assert 0.917 < covered / 400 < 0.99


def test_a_difference_is_the_items_and_p_follows_its_interval(tmp_path):
    answers = drawn(0, 3, 40, 3, (1.0, 0.1, 0.1, 0.05, 0.2))
    answers[2] += 0.5

    fit = mixed(answers, tmp_path).difference(2, 0)

    assert fit.low > 0 and fit.p < 0.05
    assert mixed(answers, tmp_path).difference(0, 1).p > fit.p


def test_contrasts_are_orthonormal():
    matrix = np.array(helmert(5))
    assert matrix @ matrix.T == pytest.approx(np.eye(4))
    assert matrix.sum(axis=1) == pytest.approx(np.zeros(4))


def test_one_seed_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least two seeds"):
        mixed(drawn(0, 3, 8, 1, (1, 1, 1, 1, 1)), tmp_path)
