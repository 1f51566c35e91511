"""How sure a score or a difference is: a two-way ANOVA of items and seeds, and Holm's correction for many tests.

Test items and training seeds are two crossed samples: every seed's model answers the same items. With one number for
each item and seed, a mean of n items and S seeds varies by the items' part A / n, the seeds' part B / S, and by what
belongs to neither alone, C / (n S). The mean squares of the two-way layout without replication (Searle, Casella and
McCulloch 1992, "Variance Components", chapter 4), divided by n S, are in expectation

    items: A / n + C / (n S)        seeds: B / S + C / (n S)        items by seeds: C / (n S)

so items + seeds - items by seeds is unbiased in all three parts. It is never taken below the last of them. The items
are the same for every model, so that what is hard for all of them cancels out of a difference. In a mean over tasks or
subtasks the items' parts add up over them, while the seeds' part is that of the whole score. Ratios enter by
linearisation (`paft.evaluate.items`).

The interval is effect ± t · (standard error). Each mean square has Satterthwaite's (1946) degrees of freedom over what
it is summed from. Of both together 1 / df is the mean of theirs weighted by their shares in the variance: Satterthwaite
weighs by squared shares, and then intervals of 3 seeds and many items cover the truth 92 times of 100 where both
matter, this 94. Where the independent part stands alone its own (n - 1)(S - 1) count. Simulated with 3 seeds or more,
intervals cover the truth 93 to 97 times of 100 where nothing, the items, the seeds or both decide, 92 where the seeds'
part is a few times the independent one; with 2 seeds that differ 87 to 92 (tests/test_coverage.py). With one seed the
interval speaks of other items, not of other trainings; `num_seeds` says so.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from scipy import stats

from paft.evaluate.items import ROUNDING, Floats, Places, over_items, rounded, stratum_sizes, within

LEVEL = 0.95


# --- estimates ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Sample:
    """Items that models answered alike: those of a task, subtask by subtask. Only itself is equal to it."""

    task: str
    ids: tuple[str, ...]
    starts: Places
    """Where each subtask begins."""


class Arm(NamedTuple):
    """One number for each seed, and what each item adds to it.

    Without items it is measured once for each training, as a sparsity is; `items` is None where there are some and
    nobody knows them.
    """

    values: Floats
    """[seed]"""
    items: Mapping[Sample, Floats] | None = MappingProxyType({})
    """[seed, item] of each sample; over all of them a seed's numbers sum to its value."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds. What needs a spread is None where none can be known.

    That is without a second seed or an item, with items that nobody knows, and where a task or subtask has one item.
    """

    value: float
    stderr: float | None
    low: float | None
    high: float | None
    p: float | None
    """Two-sided, of a value as far from 0 by chance."""
    num_items: int | None
    num_seeds: int

    @property
    def p_above(self) -> float | None:
        """One-sided: small where the value is surely above 0."""
        return None if self.p is None else self.p / 2 if self.value > 0 else 1 - self.p / 2

    @property
    def p_below(self) -> float | None:
        return None if self.p_above is None else 1 - self.p_above


def estimate(arms: Sequence[Arm], *, minus: float = 0.0) -> Estimate:
    """The sum of the arms' means over seeds, less `minus`. Seeds are drawn arm by arm, items for all together.

    A difference of models trained from the same seeds is one arm of differences; of other seeds, two arms, the second
    of them negative.
    """
    value = rounded(sum(float(arm.values.mean()) for arm in arms) - minus)
    num_seeds = min(len(arm.values) for arm in arms)
    means = _item_means(arms)
    num_items = sum(len(s.ids) for s in means) or None
    spread = _spread(arms, means)
    if spread is None:
        return Estimate(value, None, None, None, None, num_items, num_seeds)
    error = rounded(float(np.sqrt(spread.variance)))
    half = float(stats.t.ppf((1 + LEVEL) / 2, spread.freedom)) * error
    p = float(2 * stats.t.sf(abs(value) / error, spread.freedom)) if error else _sign_test(value, means)
    return Estimate(value, error, value - half, value + half, p, num_items, num_seeds)


def _item_means(arms: Sequence[Arm]) -> dict[Sample, Floats]:
    """What each item adds to the sum of the arms' means."""
    sums: dict[Sample, Floats] = {}
    for arm in arms:
        for sample, items in (arm.items or {}).items():
            sums[sample] = sums.get(sample, np.zeros(len(sample.ids))) + items.mean(0)
    return sums


def _sign_test(value: float, means: Mapping[Sample, Floats]) -> float:
    """p where no item differs from its neighbours: a few items that agree are no proof, whatever their spread."""
    if value == 0 or not means:
        return float(value == 0)
    items = np.concatenate(list(means.values()))
    above, below = (int((sign * items > ROUNDING).sum()) for sign in (1, -1))
    return float(stats.binomtest(above, above + below).pvalue) if above + below else 1.0


# --- parts of the variance ---------------------------------------------------------------------------


class Part(NamedTuple):
    """An estimate of a variance, and its degrees of freedom: 0 of none."""

    variance: float
    freedom: float


class Squares(NamedTuple):
    """The mean squares of a sum of arms, divided by n S: see above for what they are in expectation."""

    items: Part
    seeds: Part
    both: Part

    @property
    def together(self) -> Part:
        """The variance of the sum, never below that of `both`."""
        items, seeds, both = self
        variance = items.variance + seeds.variance - both.variance
        if variance <= both.variance:
            return both
        rest = max(0.0, items.variance - both.variance)
        share = seeds.variance / (seeds.variance + rest)
        return Part(variance, 1 / (share / seeds.freedom + (1 - share) / items.freedom))


def squares(arms: Sequence[Arm]) -> Squares | None:
    """Of arms with items and several seeds; None where one of the three cannot be known."""
    several = [arm for arm in arms if len(arm.values) > 1]
    items = _over_items(_item_means(arms))
    if not several or not items.freedom or np.isnan(items.variance):
        return None
    return Squares(items, _over_seeds(several), _over_both(several))


def _spread(arms: Sequence[Arm], means: Mapping[Sample, Floats]) -> Part | None:
    """Variance of the sum of the arms' means; None where it cannot be known."""
    if any(arm.items is None for arm in arms):
        return None
    several = [arm for arm in arms if len(arm.values) > 1]
    if not means:
        return _over_seeds(several) if len(several) == len(arms) else None
    items = _over_items(means)
    if np.isnan(items.variance):
        return None
    return Squares(items, _over_seeds(several), _over_both(several)).together if several else items


def _over_seeds(arms: Sequence[Arm]) -> Part:
    return sum_of((arm.values.var(ddof=1) / len(arm.values), len(arm.values) - 1) for arm in arms)


def _over_items(means: Mapping[Sample, Floats]) -> Part:
    return sum_of(
        pair
        for s, mean in means.items()
        for pair in zip(over_items(mean, s.starts), stratum_sizes(len(s.ids), s.starts) - 1, strict=True)
    )


def _over_both(arms: Sequence[Arm]) -> Part:
    return sum_of(
        pair
        for arm in arms
        for s, values in (arm.items or {}).items()
        for pair in _items_by_seeds(values, s.starts)
    )


def _items_by_seeds(values: Floats, starts: Places) -> Iterable[tuple[float, float]]:
    """(variance, degrees of freedom) of what belongs to an item and a seed together, for each stratum."""
    sizes, seeds = stratum_sizes(values.shape[1], starts), len(values)
    residuals = within(values, starts)
    residuals = residuals - residuals.mean(0)
    squares = np.add.reduceat((residuals**2).sum(0), starts)
    freedoms = (sizes - 1) * (seeds - 1)
    return zip(sizes * squares / freedoms / seeds, freedoms, strict=True)


def sum_of(parts: Iterable[tuple[float, float]]) -> Part:
    """Of independent estimates, with Satterthwaite's degrees of freedom."""
    pairs = np.array([(float(v), float(f)) for v, f in parts]).reshape(-1, 2)
    variances, freedoms = pairs.T
    total = float(variances.sum())
    if not total:
        return Part(0.0, float(freedoms.sum()))
    return Part(total, float(total**2 / (variances**2 / np.maximum(freedoms, 1)).sum()))


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down correction: with all of them below 0.05 or not, one false finding in 20 at most."""
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, (len(ps) - rank) * ps[place])
        adjusted[place] = min(1.0, largest)
    return adjusted
