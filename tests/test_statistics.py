"""Errors of scores and differences against closed forms and worked examples; tests/test_coverage.py simulates."""

import math

import numpy as np
import pytest
from scipy import stats

from paft.evaluate.items import Items, from_pairs
from paft.report.statistics import Arm, Sample, estimate, holm


def plain(values: np.ndarray, task: str = "t") -> Items:
    size = len(values)
    return Items(task, tuple(map(str, range(size))), values, np.ones(size), (0,) * size)


def subtasks(*groups: np.ndarray) -> Items:
    pairs = [(f"{name}/{n}", v, 1.0) for name, g in enumerate(groups) for n, v in enumerate(g)]
    return from_pairs("t", pairs)


def sample(items: Items) -> Sample:
    return Sample(items.task, items.ids, items.starts)


def arm(models: np.ndarray, of: Sample | None = None) -> Arm:
    """[seed, item] -> an arm."""
    rows = [plain(m) for m in models]
    return Arm(models.mean(1), {of or sample(rows[0]): np.array([r.contributions for r in rows])})


# --- items -------------------------------------------------------------------------------------------


def test_error_of_a_mean():
    values = (np.arange(200) % 3 == 0).astype(float)

    assert plain(values).score == pytest.approx(values.mean())
    assert plain(values).stderr == pytest.approx(values.std(ddof=1) / math.sqrt(200))


def test_subtasks_count_once_each_whatever_their_size():
    items = subtasks(np.ones(90), np.zeros(10))

    assert (items.score, items.stderr) == (pytest.approx(0.5), 0)


def test_error_of_few_items_in_subtasks_is_that_of_independent_means():
    groups = [np.array([1.0, 0, 1, 1, 0]), np.array([0.0, 0, 0, 1, 0]), np.array([1.0, 1])]

    expected = math.sqrt(sum(g.var(ddof=1) / len(g) for g in groups)) / 3

    assert subtasks(*groups).stderr == pytest.approx(expected)


def test_ratio_of_sums_varies_as_its_residuals():
    size = np.arange(1.0, 101.0)
    even = Items("t", tuple(map(str, range(100))), 0.8 * size, size, (0,) * 100)
    off = np.where(size % 2, 0.1, -0.1) * size
    odd = Items("t", even.ids, 0.8 * size + off, size, even.strata)

    assert (even.score, even.stderr) == (pytest.approx(0.8), pytest.approx(0, abs=1e-12))
    residuals = odd.numerators - odd.score * size
    assert odd.stderr == pytest.approx(math.sqrt((residuals**2).sum() * 100 / 99) / size.sum())


@pytest.mark.parametrize("groups", [[np.ones(1)], [np.ones(1), np.arange(5.0)], [np.ones(1)] * 50])
def test_one_item_of_a_task_or_subtask_says_nothing_of_how_sure_it_is(groups):
    items = subtasks(*groups)
    contributions = np.array([items.contributions, 0.5 * items.contributions])

    alone = estimate([Arm(np.array([items.score]), {sample(items): contributions[:1]})])
    seeds = estimate([Arm(contributions.sum(1), {sample(items): contributions})])

    assert items.stderr is None
    for found in (alone, seeds):
        assert (found.stderr, found.low, found.high, found.p, found.p_above) == (None,) * 5
        assert found.num_items == len(items.ids)


def test_two_items_that_agree_are_no_proof():
    found = estimate([arm(np.ones((1, 2)))])

    assert (found.stderr, found.p) == (0, 0.5), "the sign test over two items"


def test_subtasks_whose_items_agree_are_no_proof_either():
    """Five pairs of items that agree, two of them on a difference: four signs."""
    items = subtasks(np.ones(2), np.zeros(2), np.ones(2), np.zeros(2), np.zeros(2))

    found = estimate([Arm(np.array([0.4]), {sample(items): items.contributions[None]})])

    assert (found.stderr, found.p) == (0, pytest.approx(2 * 0.5**4))


# --- two-way ANOVA -----------------------------------------------------------------------------------


def test_variance_by_hand():
    """3 seeds x 4 items: the mean squares of the two-way layout, from sums of squares."""
    y = np.array([[1.0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 1]])
    rows, columns, mean = y.mean(1), y.mean(0), y.mean()
    by_seeds = 4 * ((rows - mean) ** 2).sum() / 2
    by_items = 3 * ((columns - mean) ** 2).sum() / 3
    both = ((y - rows[:, None] - columns + mean) ** 2).sum() / 6

    found = estimate([arm(y)])

    assert by_items + by_seeds - both < both, "the independent part is the least it can be"
    assert found.stderr == pytest.approx(math.sqrt(both / 12))
    assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, 6) * found.stderr)


def test_variance_and_degrees_of_freedom_of_both_parts():
    rng = np.random.default_rng(3)
    y = rng.normal(0, 1, (4, 1)) + rng.normal(0, 2, 30) + rng.normal(0, 1, (4, 30))
    rows, columns, mean = y.mean(1), y.mean(0), y.mean()
    both = ((y - rows[:, None] - columns + mean) ** 2).sum() / (3 * 29) / 120
    items, seeds = columns.var(ddof=1) / 30, rows.var(ddof=1) / 4

    found = estimate([arm(y)])

    variance = items + seeds - both
    share = seeds / variance
    assert found.stderr == pytest.approx(math.sqrt(variance))
    freedom = 1 / (share / 3 + (1 - share) / 29)
    assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, freedom) * found.stderr)


def test_items_of_several_tasks_add_and_seeds_are_of_the_whole():
    rng = np.random.default_rng(4)
    tasks = [rng.normal(0, 1, (3, n)) + rng.normal(0, 1, (3, 1)) for n in (20, 50)]
    whole = Arm(
        np.mean([t.mean(1) for t in tasks], axis=0),
        {sample(plain(t[0], str(n))): t / t.shape[1] / 2 for n, t in enumerate(tasks)},
    )

    items = sum(t.mean(0).var(ddof=1) / t.shape[1] for t in tasks) / 4
    both = sum(
        ((t - t.mean(1)[:, None] - t.mean(0) + t.mean()) ** 2).sum() / 2 / (t.shape[1] - 1) / 3 / t.shape[1]
        for t in tasks
    )
    seeds = whole.values.var(ddof=1) / 3

    found = estimate([whole])

    assert found.num_items == 70
    assert found.stderr == pytest.approx(math.sqrt(items + seeds - both / 4))


def test_what_is_hard_for_all_models_cancels_out_of_a_difference():
    hard = np.random.default_rng(0).random(100)
    one, other = arm(hard[None]), arm(hard[None] - 0.25)
    (of,) = one.items
    apart = Arm(one.values - other.values, {of: one.items[of] - next(iter(other.items.values()))})

    found = estimate([apart])

    assert (found.value, found.stderr) == (pytest.approx(0.25), 0)


def test_other_seeds_on_either_side_answer_the_same_items():
    """Two arms: what is hard for both cancels, and the seeds of each vary by themselves."""
    rng = np.random.default_rng(6)
    hard, of = rng.normal(0, 3, 80), sample(plain(np.zeros(80)))
    one, other = (
        hard + rng.normal(0, s, (n, 1)) + rng.normal(0, 1, (n, 80)) for s, n in ((0.5, 3), (0.3, 5))
    )

    found = estimate([arm(one, of), arm(-other, of)])

    items = (one.mean(0) - other.mean(0)).var(ddof=1) / 80
    seeds = one.mean(1).var(ddof=1) / 3 + other.mean(1).var(ddof=1) / 5
    both = sum(
        ((y - y.mean(1)[:, None] - y.mean(0) + y.mean()) ** 2).sum() / (len(y) - 1) / 79 / len(y) / 80
        for y in (one, other)
    )
    assert found.stderr == pytest.approx(math.sqrt(items + seeds - both))
    assert (found.num_seeds, found.num_items) == (3, 80)


def test_without_items_it_is_the_t_test_over_seeds():
    values = np.array([0.91, 0.97, 0.94, 0.93])

    found = estimate([Arm(values)], minus=0.9)

    expected = stats.ttest_1samp(values, 0.9)
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low - 0.9, interval.high - 0.9))


def test_one_seed_is_scored_over_its_items_and_says_so():
    values = (np.arange(200) % 4 == 0).astype(float)

    found = estimate([arm(values[None])])

    assert found.num_seeds == 1
    assert found.stderr == pytest.approx(values.std(ddof=1) / math.sqrt(200))
    assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, 199) * found.stderr)


def test_one_seed_without_items_has_no_spread():
    found = estimate([Arm(np.array([0.5]))])

    assert (found.value, found.stderr, found.p, found.p_above) == (0.5, None, None, None)


def test_where_seeds_decide_the_error_is_theirs_with_their_degrees_of_freedom():
    by_seed = np.array([0.3, 0.5, 0.55, 0.65])
    models = np.repeat(by_seed[:, None], 400, axis=1)

    found = estimate([arm(models)])

    spread = by_seed.std(ddof=1) / 2
    assert found.stderr == pytest.approx(spread)
    assert (found.high - found.value) / found.stderr == pytest.approx(stats.t.ppf(0.975, 3), rel=1e-6)


def test_arms_of_other_seeds_add_their_variances():
    one, other = np.array([0.5, 0.6, 0.7]), np.array([0.2, 0.4, 0.3])
    rows = [np.repeat(v[:, None], 300, axis=1) for v in (one, -other)]

    of = sample(plain(np.zeros(300)))
    found = estimate([arm(r, of) for r in rows])

    assert found.value == pytest.approx(one.mean() - other.mean())
    assert found.stderr == pytest.approx(math.sqrt(one.var(ddof=1) / 3 + other.var(ddof=1) / 3))


def test_nothing_varies():
    equal = estimate([arm(np.zeros((3, 20)))])
    apart = estimate([arm(np.ones((3, 20)))])

    assert (equal.low, equal.high, equal.p) == (0, 0, 1)
    assert (apart.low, apart.high, apart.p, apart.p_above) == (1, 1, 2**-19, 2**-20)


def test_seeds_alone_are_no_error_where_items_are_not_known():
    found = estimate([Arm(np.array([0.3, 0.4, 0.5]), None)])

    assert (found.value, found.stderr, found.p, found.num_seeds) == (pytest.approx(0.4), None, None, 3)


# --- Holm --------------------------------------------------------------------------------------------


def test_holm_on_a_worked_example():
    # Holm 1979 by hand: 4 * 0.005, 3 * 0.01, then 2 * 0.03, which 1 * 0.04 may not fall below
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_stays_within_one_and_takes_nothing():
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
