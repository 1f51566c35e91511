"""Redrawn items and seeds against closed forms, worked examples and simulated truth."""

import math

import numpy as np
import pytest
from scipy import stats

from paft.report.statistics import Arm, Items, _redrawn_seeds, estimate, holm, redraw


def plain(values: np.ndarray, task: str = "t") -> Items:
    size = len(values)
    return Items(task, tuple(map(str, range(size))), values, np.ones(size), (0,) * size)


def arm(models: np.ndarray) -> Arm:
    """[seed, item] -> an arm."""
    return Arm(models.mean(1), redraw([plain(m) for m in models]))


# --- items -------------------------------------------------------------------------------------------


def test_redrawn_mean_has_the_standard_error_of_a_mean():
    values = (np.arange(200) % 3 == 0).astype(float)

    (draws,) = redraw([plain(values)])

    assert draws.mean() == pytest.approx(values.mean(), abs=0.002)
    assert draws.std() == pytest.approx(values.std() / math.sqrt(200), rel=0.03)


def test_models_are_redrawn_alike_so_that_common_difficulty_cancels():
    easy = np.random.default_rng(0).random(100)

    one, other = redraw([plain(easy), plain(easy - 0.25)])

    np.testing.assert_allclose(one - other, 0.25)


def test_redrawing_is_the_same_in_every_call_and_alone_as_in_company():
    values = np.random.default_rng(1).random(50)

    alone, (_, accompanied) = redraw([plain(values)]), redraw([plain(values**2), plain(values)])

    assert np.array_equal(alone, redraw([plain(values)]))
    np.testing.assert_allclose(alone[0], accompanied)  # another shape of product rounds otherwise


def test_subtasks_count_once_each_whatever_their_size():
    values = np.concatenate([np.ones(90), np.zeros(10)])
    items = Items("t", tuple(map(str, range(100))), values, np.ones(100), (0,) * 90 + (1,) * 10)

    assert items.score == 0.5
    np.testing.assert_array_equal(redraw([items])[0], 0.5)


def test_ratio_of_sums_is_redrawn_as_a_ratio():
    size = np.arange(1.0, 101.0)
    items = Items("t", tuple(map(str, range(100))), 0.8 * size, size, (0,) * 100)

    np.testing.assert_allclose(redraw([items])[0], 0.8)
    assert items.score == pytest.approx(0.8)


def test_other_items_are_refused():
    other = Items("t", ("x", "y"), np.ones(2), np.ones(2), (0, 0))

    with pytest.raises(ValueError, match="not answer the same items"):
        redraw([plain(np.ones(2)), other])


# --- estimates ---------------------------------------------------------------------------------------


def test_without_items_it_is_the_t_test_over_seeds():
    values = np.array([0.91, 0.97, 0.94, 0.93])

    found = estimate([Arm(values, None)], minus=0.9)

    expected = stats.ttest_1samp(values, 0.9)
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low - 0.9, interval.high - 0.9))


def test_one_seed_is_scored_over_its_items_and_says_so():
    values = (np.arange(200) % 4 == 0).astype(float)

    found = estimate([arm(values[None])], num_items=200)

    assert found.num_seeds == 1
    assert found.stderr == pytest.approx(values.std() / math.sqrt(200), rel=0.03)
    assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, 199) * found.stderr)


def test_one_seed_without_items_has_no_spread():
    found = estimate([Arm(np.array([0.5]), None)])

    assert (found.value, found.stderr, found.p, found.p_above) == (0.5, None, None, None)


def test_where_seeds_decide_the_error_is_theirs_with_their_degrees_of_freedom():
    by_seed = np.array([0.3, 0.5, 0.55, 0.65])
    models = np.repeat(by_seed[:, None], 400, axis=1)

    found = estimate([arm(models)], num_items=400)

    spread = by_seed.std(ddof=1) / 2
    assert found.stderr == pytest.approx(spread, rel=0.03)
    assert (found.high - found.value) / found.stderr == pytest.approx(stats.t.ppf(0.975, 3), rel=1e-6)


def test_arms_of_other_seeds_add_their_variances():
    one, other = np.array([0.5, 0.6, 0.7]), np.array([0.2, 0.4, 0.3])
    rows = [np.repeat(v[:, None], 300, axis=1) for v in (one, -other)]

    found = estimate([arm(r) for r in rows], num_items=300)

    assert found.value == pytest.approx(one.mean() - other.mean())
    assert found.stderr == pytest.approx(math.sqrt(one.var(ddof=1) / 3 + other.var(ddof=1) / 3), rel=0.03)


def test_nothing_varies():
    equal = estimate([arm(np.zeros((3, 20)))], num_items=20)
    apart = estimate([arm(np.ones((3, 20)))], num_items=20)

    assert (equal.low, equal.high, equal.p) == (0, 0, 1)
    assert (apart.low, apart.high, apart.p, apart.p_above) == (1, 1, 0, 0)


@pytest.mark.parametrize(("seed_spread", "least", "most"), [(0.0, 0.94, 1.0), (0.4, 0.90, 0.97)])
def test_interval_of_three_seeds_covers_the_truth_and_quantiles_do_not(seed_spread, least, most):
    rng = np.random.default_rng(5)
    covered = by_quantiles = 0
    for _ in range(300):
        models = rng.normal(0, seed_spread, (3, 1)) + rng.normal(0, 0.5, 60) + rng.normal(0, 0.5, (3, 60))
        drawn = Arm(models.mean(1), redraw([plain(m) for m in models], draws=500))
        found = estimate([drawn], num_items=60)
        covered += found.low <= 0 <= found.high
        low, high = np.quantile(_redrawn_seeds(drawn, 0), [0.025, 0.975])
        by_quantiles += low <= 0 <= high

    assert least <= covered / 300 <= most
    if seed_spread:
        assert by_quantiles / 300 < 0.90


# --- Holm --------------------------------------------------------------------------------------------


def test_holm_on_a_worked_example():
    # Holm 1979 by hand: 4 * 0.005, 3 * 0.01, then 2 * 0.03, which 1 * 0.04 may not fall below
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_stays_within_one_and_takes_nothing():
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
