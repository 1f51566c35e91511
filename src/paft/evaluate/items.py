"""One column of one model, item by item: its score and how sure the items make it; loads no torch."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Places = NDArray[np.intp]
ROUNDING = 1e-12
"""What sums of equal numbers may differ by; no score is that small."""


@dataclass(frozen=True)
class Items:
    """The score is the mean over strata of sum(numerators) / sum(denominators).

    Of shares the denominators are 1, of bits per byte they are bytes; a stratum is a subtask that counts once, whatever
    its number of items. Items of one stratum stand together.
    """

    task: str
    ids: tuple[str, ...]
    numerators: Floats
    denominators: Floats
    strata: tuple[int, ...]

    @cached_property
    def starts(self) -> Places:
        """Where each stratum begins."""
        return (
            np.flatnonzero(np.diff(self.strata, prepend=self.strata[0] - 1)) if self.strata else np.array([0])
        )

    @cached_property
    def contributions(self) -> Floats:
        """What each item adds to the score, which is their sum.

        Of a mean its share of it; of a ratio its share and its residual (x - ratio * b) / sum(b), which is how the
        ratio moves with the item to first order (linearisation, the delta method).
        """
        sizes = stratum_sizes(len(self.ids), self.starts)
        above, below = (np.add.reduceat(n, self.starts) for n in (self.numerators, self.denominators))
        ratio = np.repeat(above / below, sizes)
        residual = (self.numerators - ratio * self.denominators) / np.repeat(below, sizes)
        return np.asarray((ratio / np.repeat(sizes, sizes) + residual) / len(sizes))

    @property
    def score(self) -> float:
        return float(self.contributions.sum())

    @property
    def stderr(self) -> float | None:
        """Standard error over items; None where a stratum has a single item, which shows no spread."""
        variances = over_items(self.contributions, self.starts)
        return None if np.isnan(variances).any() else rounded(math.sqrt(variances.sum()))


def rounded(number: float) -> float:
    """`number`, or 0 where it is what rounding left of it."""
    return 0.0 if abs(number) < ROUNDING else number


def stratum_sizes(num_items: int, starts: Places) -> Places:
    return np.diff(starts, append=num_items)


def within(values: Floats, starts: Places) -> Floats:
    """`values` [..., item] less the mean of their stratum."""
    sizes = stratum_sizes(values.shape[-1], starts)
    means = np.add.reduceat(values, starts, axis=-1) / sizes
    return values - np.repeat(means, sizes, axis=-1)


def over_items(contributions: Floats, starts: Places) -> Floats:
    """Variance of each stratum's sum of independent contributions [item]: [stratum], NaN of a single item."""
    sizes = stratum_sizes(len(contributions), starts)
    squares = np.add.reduceat(within(contributions, starts) ** 2, starts)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(sizes > 1, sizes * squares / (sizes - 1), np.nan))


# --- samples.jsonl -----------------------------------------------------------------------------------


def from_samples(task: str, samples: Sequence[Mapping[str, Any]]) -> Items:
    """`Items` of one column's lines of samples.jsonl.

    lm-eval gives (log-likelihood, bytes) for bits per byte, else one number an item; of several instructions in one
    item {"sum": those that were followed, "of": all}.
    """
    return from_pairs(task, [(str(s["item"]), *_pair(s["value"])) for s in samples])


def from_pairs(task: str, pairs: Iterable[tuple[str, float, float]]) -> Items:
    """`Items` of (id, numerator, denominator), in order of subtask, which is what is before the last `/`, and id."""
    named = sorted((*name.rpartition("/")[::2], above, below) for name, above, below in pairs)
    numbers = {name: n for n, name in enumerate(dict.fromkeys(subtask for subtask, *_ in named))}
    return Items(
        task=task,
        ids=tuple(f"{subtask}/{item}" if subtask else item for subtask, item, *_ in named),
        numerators=np.array([above for *_, above, _ in named]),
        denominators=np.array([below for *_, below in named]),
        strata=tuple(numbers[subtask] for subtask, *_ in named),
    )


def _pair(value: Any) -> tuple[float, float]:
    if isinstance(value, dict):
        return float(value["sum"]), float(value["of"])
    if isinstance(value, list | tuple):
        likelihood, num_bytes = value
        return -float(likelihood) / math.log(2), float(num_bytes)
    return float(value), 1.0
