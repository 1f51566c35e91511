"""How large a difference must be for a study to find it, by the variances of the first one.

Of a paired difference between two cells, measured on n items by S seeds, the variance is at most A / n + B / S with

- B the variance over seeds of the difference, which also holds what belongs to an item and a seed together,
- A = n1 (stderr^2 - B1 / S1) of a difference that the first study printed, on n1 items by S1 seeds. Its standard errors
  are upper bounds, and so is A.

The outcome of the second study is the mean of two skills. Nothing is known of the second skill as it is measured there,
so it is taken to vary as the first, independently: the variance of the mean is half of one's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean, variance
from typing import Any

from scipy import optimize, stats

from paft.report.row import Row
from paft.report.saved import read_csv

COLUMN = "gsm8k_choice"
QUESTION = "DPO: L1 (1e-4) against none, mean of five merges"
"""The difference of the first study that the second one asks about again."""
SPARSE, DENSE = 1e-4, 0.0
LEVEL, POWER, SKILLS = 0.05, 0.8, 2
SIZES = ((3, 64), (3, 500), (5, 500), (8, 500), (5, 1000))
"""(seeds, items): the first study's, the second's, and what more would give."""


@dataclass(frozen=True)
class Variances:
    """In squared percentage points: A and B, see the module."""

    items: float
    seeds: float

    def stderr(self, num_seeds: int, num_items: int) -> float:
        """Of the mean of both skills."""
        return ((self.items / num_items + self.seeds / num_seeds) / SKILLS) ** 0.5

    def freedom(self, num_seeds: int, num_items: int) -> float:
        """As `paft.report.statistics` weighs the degrees of freedom of items and seeds."""
        share = (self.seeds / num_seeds) / (self.items / num_items + self.seeds / num_seeds)
        return 1 / (share / (num_seeds - 1) + (1 - share) / (num_items - 1))


def first_study(folder: Path) -> Variances:
    """Of the CSV files of the first study on GSM8K. Raises `ValueError` where they lack the difference."""
    rows = read_csv(folder / "results.csv")
    single = [variance(d) for d in _differences(rows)]
    asked = [
        r for r in read_csv(folder / "comparisons.csv") if (r["question"], r["column"]) == (QUESTION, COLUMN)
    ]
    if not single or not asked:
        raise ValueError(f"{folder} has no {COLUMN} of {QUESTION!r}")
    (told,) = asked
    size, seeds = told["num_items"], told["num_seeds"]
    merged = [list(d) for d in zip(*_differences([r for r in rows if r.preference == "dpo"]), strict=True)]
    of_mean = variance([fmean(d) for d in merged])
    return Variances(max(0.0, size * (told["stderr"] ** 2 - of_mean / seeds)), fmean(single))


def least_difference(variances: Variances, num_seeds: int, num_items: int, num_tests: int = 1) -> float:
    """The true difference that is found with a power of 0.8 by a two-sided t test at 0.05 / `num_tests`."""
    freedom = variances.freedom(num_seeds, num_items)
    critical = float(stats.t.ppf(1 - LEVEL / num_tests / 2, freedom))

    def lacking(ratio: float) -> float:
        return float(stats.nct.sf(critical, freedom, ratio)) - POWER

    return float(optimize.brentq(lacking, 0.0, 50.0)) * variances.stderr(num_seeds, num_items)


def power_table(folder: Path) -> list[dict[str, Any]]:
    """A row for each of `SIZES`: the standard error and the least difference found, of one test and of the hardest of
    four under Holm's correction; percentage points of the mean of both skills."""
    found = first_study(folder)
    return [
        {
            "seeds": seeds,
            "items": items,
            "stderr": found.stderr(seeds, items),
            "one test": least_difference(found, seeds, items),
            "first of four": least_difference(found, seeds, items, 4),
        }
        for seeds, items in SIZES
    ]


def _differences(rows: Sequence[Row]) -> Iterator[list[float]]:
    """Sparse minus dense by seed, in percentage points, for each merge and objective."""
    merged = [r for r in rows if r.merged and r.get(COLUMN) is not None]
    pairs = product(*(dict.fromkeys(getattr(r, name) for r in merged) for name in ("merge", "preference")))
    for merge, preference in pairs:
        sides = [
            {
                int(r["seed"]): r[COLUMN]
                for r in merged
                if (r.merge, r.preference, r.weight) == (merge, preference, w)
            }
            for w in (SPARSE, DENSE)
        ]
        yield [100 * (sides[0][seed] - sides[1][seed]) for seed in sorted(sides[0].keys() & sides[1].keys())]
