"""How much goes through a model at once where log-likelihoods are asked for; loads no torch."""

import math
from dataclasses import dataclass

from paft.config import ModelShape
from paft.cost.flops_and_bytes import past_share, tokens_that_fit

MAX_TOKENS = {"cpu": 4096, "cuda": 16_384}
"""Beyond this many tokens at once a forward pass gains nothing, and one long sequence pads many short ones."""


@dataclass(frozen=True)
class Limits:
    """Of one forward pass; a row that is longer goes alone."""

    rows: float
    tokens: int = MAX_TOKENS["cpu"]
    """With padding."""
    held: float = math.inf
    """Tokens that memory has room for."""
    past: float = 0.0
    """What a token that was forwarded before takes of that room, for every row that follows it."""

    def admit(self, rows: int, width: int, before: int) -> bool:
        """Whether so many rows of this width, which follow `before` tokens that they share, may go at once."""
        fits = rows * (width + self.past * before) <= self.held
        return rows <= self.rows and rows * width <= self.tokens and fits


def limits(device: str, size: int, shape: ModelShape | None, *, free: float, item_bytes: int) -> Limits:
    """Of a model of this shape on this kind of device, with `free` bytes beside its weights.

    On a CPU, and of a model whose shape nobody knows, `size` rows; on a GPU as many as it has memory for.
    """
    if device != "cuda" or shape is None:
        return Limits(size)
    held = tokens_that_fit(shape, free, item_bytes=item_bytes)
    return Limits(math.inf, MAX_TOKENS["cuda"], held, past_share(shape))
