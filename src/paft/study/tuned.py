"""Merge weights chosen for each SFT delta by the same trials on validation items, to be scored on the test items."""

import shlex
from collections.abc import Sequence
from statistics import fmean

from paft.command.words import one_cell
from paft.report.row import Row

VALIDATION = "(validation)"
APART = ("sft.lora.rank", "sft.tuning", "lambda", "l1_method", "merge.prune_sft", "merge.prune_by", "norm")
"""What tells the SFT deltas apart whose merges are tuned, each for itself."""


def best_weights(rows: Sequence[Row]) -> list[Row]:
    """Of each SFT delta the row of the weights with the highest average over seeds; of equals the first.

    Raises `ValueError` where no row was scored on validation items, or deltas had unlike numbers of trials.
    """
    trials: dict[tuple[object, ...], dict[str, list[Row]]] = {}
    for row in rows:
        if row.merged and str(row["evaluate"]).endswith(VALIDATION):
            delta = tuple(row.get(name) for name in APART)
            trials.setdefault(delta, {}).setdefault(str(row["merge.weights"]), []).append(row)
    if not trials:
        raise ValueError(
            "no merge was scored on validation items; run the grid experiment=study2/tuned first"
        )
    budgets = (
        {len(seeds) for own in trials.values() for seeds in own.values()},
        {len(own) for own in trials.values()},
    )
    if any(len(sizes) > 1 for sizes in budgets):
        raise ValueError(
            f"deltas have unlike numbers of trials, {sorted(budgets[1])} weights of {sorted(budgets[0])} seeds; the "
            "same command again runs those that are missing"
        )
    return [
        max(own.values(), key=lambda seeds: fmean(r["average"] for r in seeds))[0] for own in trials.values()
    ]


def test_commands(rows: Sequence[Row], seeds: Sequence[int]) -> list[str]:
    """The commands, as a shell takes them, that score each delta's best weights on the test items."""
    words = [shlex.split(str(row["command"]))[2:] for row in best_weights(rows)]
    return [
        shlex.join(["train.py", *one_cell(own, "evaluate.split=test", f"seed={seed}")])
        for own in words
        for seed in seeds
    ]
