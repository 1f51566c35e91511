"""Log-likelihood requests as a tree of tokens: what several of them begin with is there once.

A `Branch` is one whole text. Branches that share a long beginning grow from a `Trunk`, which is forwarded once
and whose keys and values are kept: the few-shot examples before every question. Branches that share most of
their tokens lie in one `Row`, each token once: a question and its answers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from paft.forward.limits import Limits

Request = tuple[Any, list[int], list[int]]
"""(text, context tokens, continuation tokens), as lm-eval passes them."""
MAX_ROW = 512
"""Tokens of a row that holds several branches: attention also computes what one branch may not see of another."""
MIN_TRUNK = 256
"""Tokens a trunk must save: it is a forward pass of its own."""
MIN_SHARE = 0.2
"""Share of the tokens that sharing must save: attention under a mask is slower than plain causal attention."""


@dataclass
class Branch:
    """One text to run through the model and the requests read off it: (index, start, targets)."""

    tokens: list[int]
    riders: list[tuple[int, int, list[int]]] = field(default_factory=list)


class Ask(NamedTuple):
    """The log-probability of `target` after the token in `column` is a term of the answer to `request`."""

    column: int
    target: int
    request: int


@dataclass
class Row:
    """Tokens forwarded as one row of a batch; token i is seen by those from itself up to `ends[i]`."""

    tokens: list[int]
    positions: list[int]
    ends: list[int]
    asks: list[Ask]

    @property
    def branched(self) -> bool:
        return any(end < len(self.tokens) for end in self.ends)


@dataclass
class Trunk:
    """Tokens (none, at the root) that all the rows, and the trunks that grow from this one, begin with."""

    row: Row
    rows: list[Row] = field(default_factory=list)
    trunks: list["Trunk"] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Tokens to forward, without padding."""
        return sum(len(r.tokens) for r in (self.row, *self.rows)) + sum(t.num_tokens for t in self.trunks)


def branches_of(requests: Sequence[Request], max_length: int, *, apart: bool = False) -> list[Branch]:
    """Put every request on a branch whose tokens begin with its own, or `apart` are them; in the order of their tokens.

    A request of more than `max_length` + 1 tokens loses its oldest ones, as in lm-eval. Raises `ValueError`
    for a continuation that does not fit alone.
    """
    texts = []
    for index, (_, context, continuation) in enumerate(requests):
        if len(continuation) > max_length:
            raise ValueError(
                f"a continuation of {len(continuation)} tokens does not fit the model's {max_length}; "
                "leave the task out or choose a model with a longer context"
            )
        tokens = [*context, *continuation][-(max_length + 1) :]
        # the last token is only a target: nothing is asked of the model behind it
        texts.append((tokens[:-1], index, len(tokens) - len(continuation) - 1, continuation))
    branches: list[Branch] = []
    # in descending order whatever begins with some tokens comes before those tokens themselves
    for tokens, index, start, continuation in sorted(texts, key=lambda w: (w[0], w[1]), reverse=True):
        begins = branches and branches[-1].tokens[: len(tokens)] == tokens
        if not begins or (apart and branches[-1].tokens != tokens):
            branches.append(Branch(tokens))
        branches[-1].riders.append((index, start, continuation))
    return branches[::-1]


def grow(branches: Sequence[Branch], *, share: bool = True) -> Trunk:
    """Lay ordered branches out as trunks and rows; without `share`, each is a row of its own at the root."""
    root = Trunk(lay([], [], 0))
    if not share:
        root.rows = [lay([branch], [0], 0) for branch in branches]
        return root
    arrays = [np.array(branch.tokens) for branch in branches]
    shared = [0, *(common_length(a, b) for a, b in pairwise(arrays))]
    _grow(root, branches, np.array(shared), 0)
    return root


def common_length(a: np.ndarray, b: np.ndarray) -> int:
    """Number of equal elements at the beginning of two arrays."""
    size = min(len(a), len(b))
    differ = a[:size] != b[:size]
    return int(differ.argmax()) if differ.any() else size


def _grow(trunk: Trunk, branches: Sequence[Branch], shared: np.ndarray, start: int) -> None:
    """Add rows and trunks that follow the first `start` tokens; `shared[i]` counts what branch i has from i - 1."""
    ranges = [(0, len(branches))] if branches else []
    while ranges:
        low, high = ranges.pop()
        # `inner`: what neighbours of this range share beyond `start`; its sum is what laying them in one row saves
        part, inner = branches[low:high], shared[low + 1 : high] - start
        alone = sum(len(branch.tokens) - start for branch in part)
        packed, stem = alone - int(inner.sum()), int(inner.min(initial=alone))
        if len(part) == 1 or (packed <= MAX_ROW and alone - packed >= MIN_SHARE * alone):
            trunk.rows.append(lay(part, shared[low:high], start))
        elif stem * len(inner) >= max(MIN_TRUNK, MIN_SHARE * alone):
            child = Trunk(lay(part, shared[low:high], start, start + stem))
            _grow(child, part, shared[low:high], start + stem)
            trunk.trunks.append(child)
        else:
            # neither fits one row nor saves a pass of its own: divide where neighbours share least
            cuts = [low, *(low + 1 + np.flatnonzero(inner == stem)).tolist(), high]
            ranges += pairwise(cuts)


def lay(
    branches: Sequence[Branch], shared: Sequence[int] | np.ndarray, start: int, stop: int | None = None
) -> Row:
    """The tokens of ordered branches from position `start` to `stop`, depth first, each shared one once."""
    row = Row([], [], [], [])
    path: list[int] = []
    for branch, known in zip(branches, shared, strict=True):
        # back up to where this branch leaves the last one: the tokens behind it are seen by nothing that follows
        depth = max(int(known) - start, 0) if row.tokens else 0
        for column in path[depth:]:
            row.ends[column] = len(row.tokens)
        del path[depth:]
        new = branch.tokens[start + depth : stop]
        path += range(len(row.tokens), len(row.tokens) + len(new))
        row.tokens += new
        row.positions += range(start + depth, start + depth + len(new))
        row.ends += [0] * len(new)
        row.asks += _asks(branch, path, start)
    for column in path:
        row.ends[column] = len(row.tokens)
    return row


def _asks(branch: Branch, path: Sequence[int], start: int) -> Iterator[Ask]:
    """The branch's targets that follow a token on `path`, whose first is at position `start`."""
    for index, first, targets in branch.riders:
        for step, target in enumerate(targets, first - start):
            if 0 <= step < len(path):
                yield Ask(path[step], target, index)


def batches(rows: Sequence[Row], limits: Limits) -> Iterator[list[Row]]:
    """The rows of one trunk as the `limits` admit them at once, plain ones apart from branched ones; longest first."""
    batch: list[Row] = []
    for row in sorted(rows, key=lambda r: (r.branched, len(r.tokens)), reverse=True):
        width = len(batch[0].tokens) if batch else 0
        full = not limits.admit(len(batch) + 1, max(width, len(row.tokens)), row.positions[0])
        if batch and (full or row.branched != batch[0].branched):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
