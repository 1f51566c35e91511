"""Which cells speak for the paper's table where a store holds many variants of each."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from paft.config import MergeConfig
from paft.graph.stage import canonical
from paft.merge.methods import METHODS
from paft.report.options import merge_options
from paft.report.row import Row, follows_seed

Variant = tuple[tuple[str, Any], ...]
"""The merge options of a row; the seed of the drop masks is none where it follows the training's."""


def representatives(rows: Sequence[Row], norm: str | None = None) -> list[Row]:
    """The rows of one training recipe per branch, and of one variant per merge method; of merges those at a `norm`.

    Chosen without looking at a score: the recipe behind most cells (learning rate, steps, data, LoRA, kind of penalty;
    not lambda, not the seed), and of each merge method the variant with the fewest options unlike the default.
    """
    sft = _commonest(rows, "sft_recipe")
    objectives = {r.preference for r in rows if r.preference}
    aligned = {_commonest([r for r in rows if r.preference == o], "preference_recipe") for o in objectives}
    candidates = [
        r
        for r in rows
        if (not r.get("sft_recipe") or r["sft_recipe"] == sft)
        and (not r.get("preference_recipe") or r["preference_recipe"] in aligned)
    ]
    if norm is not None:
        candidates = [r for r in candidates if r.norm in ("", norm)]
    methods = dict.fromkeys((r.paradigm, r.merge) for r in candidates)
    nearest = {
        m: _nearest([variant(r) for r in candidates if (r.paradigm, r.merge) == m], m[1]) for m in methods
    }
    return [r for r in candidates if variant(r) == nearest[r.paradigm, r.merge]]


def variant(row: Row) -> Variant:
    options = {c: v for c, v in row.items() if c.startswith("merge.") and v is not None}
    return tuple(sorted((c, v) for c, v in options.items() if not follows_seed(row, c)))


def _commonest(rows: Sequence[Row], column: str) -> str:
    """The value that most families have; of equals the first in the alphabet."""
    count = Counter(recipe for recipe, _ in {(r.get(column) or "", r.family) for r in rows} if recipe)
    return min(count, key=lambda recipe: (-count[recipe], recipe), default="")


def _nearest(variants: Sequence[Variant], method: str) -> Variant:
    count, default = Counter(variants), _default(method)
    return min(count, key=lambda v: (len(set(v) ^ default), -count[v], str(v)))


def _default(method: str) -> frozenset[tuple[str, Any]]:
    options = merge_options(canonical(METHODS.get(method, MergeConfig)()))
    return frozenset((c, v) for c, v in options.items() if v is not None and c != "merge.seed")
