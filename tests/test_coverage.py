"""Intervals against simulated worlds: how often they cover the truth, what they find, and what redrawing made of it.

Two models answer the same items with 0 or 1, trained from a few seeds each; the truth is what their difference would be
over all items and all trainings. Worlds differ in what decides an answer beside chance: nothing, the items (a model is
good at some), the seeds (some trainings are better), or both.
"""

import math
from typing import NamedTuple

import numpy as np
import pytest
from scipy import stats

from paft.evaluate.items import Items, from_pairs
from paft.report.statistics import Arm, Estimate, Sample, estimate

WORLDS = {"nothing": (0.0, 0.0), "items": (1.5, 0.0), "seeds": (0.0, 0.8), "both": (1.0, 0.5)}
"""Spread by items and by seeds of the probit of a right answer, where chance has 1."""
HARDEST = "little of the seeds"
COMMON = 0.8
"""Spread of how hard an item is for every model."""


class World(NamedTuple):
    answers: np.ndarray
    """[world, seed, item]: right answers of one model less those of the other"""
    truth: float


def simulate(name: str, seeds: int, items: int, worlds: int, gain: float = 0.0, draw: int = 0) -> World:
    """`gain` is what the first model is better by, in probits."""
    rng, (by_item, by_seed) = np.random.default_rng([draw, seeds, items]), WORLDS.get(name, (0.0, 0.3))
    better = np.array([gain, 0.0])[:, None, None]
    hard = rng.normal(0, COMMON, (worlds, 1, 1, items))
    own = (
        rng.normal(0, 1, (worlds, 2, 1, items)) * by_item + rng.normal(0, 1, (worlds, 2, seeds, 1)) * by_seed
    )
    right = rng.random((worlds, 2, seeds, items)) < stats.norm.cdf(better + hard + own)
    total = math.sqrt(1 + COMMON**2 + by_item**2 + by_seed**2)
    truth = float(stats.norm.cdf(gain / total) - 0.5)
    return World(right[:, 0].astype(float) - right[:, 1], truth)


def intervals(world: World) -> np.ndarray:
    """[world, (value, error, low, high)]"""
    items = world.answers.shape[2]
    sample = Sample("t", tuple(map(str, range(items))), np.array([0]))
    found = [estimate([Arm(a.mean(1), {sample: a / items})]) for a in world.answers]
    return np.array([(e.value, e.stderr, e.low, e.high) for e in found])


def redrawn(world: World) -> np.ndarray:
    """The same by the bootstrap of items and seeds that the ANOVA took the place of, its errors in closed form.

    Items are redrawn n of n, seeds S - 1 of S: the variance of the mean over drawn seeds and items, given the answers.
    """
    answers, (_, seeds, items) = world.answers, world.answers.shape
    by_item, by_seed, value = answers.mean(1), answers.mean(2), answers.mean((1, 2))
    of_items, of_seeds = by_item.var(1) / items, by_seed.var(1) / (seeds - 1)
    both = answers - by_item[:, None] - by_seed[..., None] + value[:, None, None]
    error = np.sqrt(of_items + of_seeds + (both**2).mean((1, 2)) / items / (seeds - 1))
    freedom = (of_items + of_seeds) ** 2 / (of_items**2 / (items - 1) + of_seeds**2 / (seeds - 1))
    half = stats.t.ppf(0.975, freedom) * error
    return np.stack([value, error, value - half, value + half], axis=1)


def covered(found: np.ndarray, truth: float) -> float:
    return float(((found[:, 2] <= truth) & (truth <= found[:, 3])).mean())


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize(("seeds", "items"), [(3, 64), (3, 500), (5, 100)])
def test_intervals_cover_the_truth_95_times_of_100(name, seeds, items):
    world = simulate(name, seeds, items, worlds=2000 if items < 200 else 800)

    share = covered(intervals(world), world.truth)

    noise = 1.5 * math.sqrt(0.95 * 0.05 / len(world.answers))
    assert 0.93 - noise <= share <= 0.97 + noise


@pytest.mark.parametrize(
    ("name", "seeds", "least"),
    [(HARDEST, 3, 0.91), (HARDEST, 2, 0.86), ("seeds", 2, 0.87), ("both", 2, 0.88)],
)
def test_where_intervals_are_too_narrow_and_by_how_much(name, seeds, least):
    """The seeds' part is a few times the independent one, or two seeds say how much seeds differ."""
    world = simulate(name, seeds, 64, worlds=2000)

    assert least <= covered(intervals(world), world.truth) < 0.95


@pytest.mark.parametrize("name", WORLDS)
def test_one_seed_covers_the_truth_of_that_training_alone(name):
    world = simulate(name, 1, 100, worlds=2000)

    share = covered(intervals(world), world.truth)

    assert 0.93 <= share <= 0.97 if name in ("nothing", "items") else share < 0.9, (
        "num_seeds says of what it speaks"
    )


# --- ratios and subtasks -----------------------------------------------------------------------------


def of_items(seeds: list[Items]) -> Estimate:
    """One model's score from what each seed's items say."""
    of = Sample(seeds[0].task, seeds[0].ids, seeds[0].starts)
    return estimate(
        [Arm(np.array([s.score for s in seeds]), {of: np.array([s.contributions for s in seeds])})]
    )


def bits(rng: np.random.Generator, seeds: int, items: int) -> Estimate:
    """Bits per byte of texts of very different lengths, of which long ones are easier."""
    size = rng.lognormal(4, 0.8, items)
    rate = 1 + 0.2 * (4 - np.log(size)) + rng.normal(0, 0.3, items) + rng.normal(0, 0.05, (seeds, 1))
    names = [str(n) for n in range(items)]
    drawn = (rate + rng.normal(0, 0.1, (seeds, items))) * size
    return of_items([from_pairs("t", zip(names, row, size, strict=True)) for row in drawn])


TRUE_BITS = 1 - 0.2 * 0.8**2
"""E[rate * size] / E[size]: weighting by size moves a normal log size up by its variance."""


@pytest.mark.parametrize("seeds", [1, 3])
def test_ratios_are_covered(seeds):
    rng = np.random.default_rng([7, seeds])
    found = [bits(rng, seeds, 100) for _ in range(1500)]

    share = np.mean([e.low <= TRUE_BITS <= e.high for e in found])

    assert 0.92 <= share <= 0.975 if seeds > 1 else 0.7 < share < 0.93, "one seed says nothing of others"


@pytest.mark.parametrize("items", [2, 5])
def test_few_items_of_many_subtasks_are_covered(items):
    """57 subtasks count once each; redrawing n of n within each would make the error sqrt((n - 1) / n) of it."""
    rng, levels = np.random.default_rng([8, items]), np.linspace(0.2, 0.9, 57)
    names = [f"{subtask}/{n}" for subtask in range(57) for n in range(items)]
    covers, variances, values = [], [], []
    for _ in range(800):
        right = (rng.random((57, items)) < levels[:, None]).astype(float).ravel()
        found = of_items([from_pairs("t", zip(names, right, np.ones(len(names)), strict=True))])
        covers.append(found.low <= levels.mean() <= found.high)
        variances.append(found.stderr**2)
        values.append(found.value)

    assert 0.93 <= np.mean(covers) <= 0.97
    assert np.mean(variances) == pytest.approx(np.var(values), rel=0.12)


# --- errors and power --------------------------------------------------------------------------------


@pytest.mark.parametrize(("seeds", "items"), [(3, 64), (3, 500)])
def test_errors_are_as_large_as_they_should_be_and_were_not(seeds, items):
    world = simulate("nothing", seeds, items, worlds=600)
    true = world.answers.mean((1, 2)).std()

    now, before = (float(np.sqrt((f(world)[:, 1] ** 2).mean())) for f in (intervals, redrawn))

    # chance alone: the seeds' part is 0, and half of its estimates are below 0 and taken as 0
    assert 0.95 * true < now < 1.3 * true
    assert before > 1.6 * true


@pytest.mark.parametrize("name", ["items", "seeds", "both"])
def test_variance_is_unbiased_in_the_part_that_decides(name):
    world = simulate(name, 3, 64, worlds=2000)

    found = (intervals(world)[:, 1] ** 2).mean()

    assert found == pytest.approx(world.answers.mean((1, 2)).var(), rel=0.1)


def test_what_is_there_is_found_more_often_than_by_redrawing():
    """A true difference of 15 points, as 3 trainings and 64 items show it."""
    found, before = {}, {}
    for name in WORLDS:
        world = simulate(name, 3, 64, worlds=600, gain=0.5, draw=1)
        found[name], before[name] = (float((f(world)[:, 2] > 0).mean()) for f in (intervals, redrawn))
    assert found["nothing"] > 1.3 * before["nothing"]
    assert found["items"] > 1.2 * before["items"]
    assert found["seeds"] < 0.2 and found["both"] < 0.3, "trainings that differ this much need more of them"
