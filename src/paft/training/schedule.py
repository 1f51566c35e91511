"""The learning rate over a run: a warm-up, then one of the shapes of `<branch>.schedule`."""

import math
from collections.abc import Callable

from paft.config import Schedule


def schedule(name: Schedule, *, steps: int, warmup_ratio: float) -> Callable[[int], float]:
    """Factor on the learning rate at optimizer step 0, 1, ...; rises linearly over the warm-up, then follows `name`."""
    warmup = math.ceil(warmup_ratio * steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = (step - warmup) / max(steps - warmup, 1)
        match name:
            case Schedule.cosine:
                return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
            case Schedule.linear:
                return max(1 - done, 0.0)
            case Schedule.inverse_sqrt:
                return math.sqrt((warmup + 1) / (step + 1))
            case Schedule.constant:
                return 1.0

    return factor
