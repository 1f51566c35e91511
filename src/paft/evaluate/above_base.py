"""Columns that ask of each item whether a model does better on it than the base: `above_base`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from paft.config import EvaluateConfig
from paft.evaluate.items import from_samples
from paft.evaluate.results import Score

Sample = dict[str, Any]


def compared(
    scores: Mapping[str, Score], samples: Sequence[Sample], config: EvaluateConfig, base: Path | None
) -> tuple[dict[str, Score], list[Sample]]:
    """The scores and samples with those of `above_base` made of comparisons: an item counts 1 where the model has more
    of the metric than the base had, 1/2 where as much, and 0 where less; the other way round where lower is better.

    `base` is the base's evaluate folder, which has the same items; None of the base itself. Of DPO's margins that is
    the accuracy of its implicit reward (Rafailov et al. 2023, section 4), whatever beta is.
    """
    found, by_column = dict(scores), _by_column(samples)
    for column, plain in config.plain_columns.items():
        mine = by_column[plain]
        theirs = mine if base is None else _by_column(_read(base))[plain]
        better = _better(mine, theirs, scores[plain])
        by_column[column] = [s | {"value": v} for s, v in zip(by_column[column], better, strict=True)]
        items = from_samples(scores[column].task, by_column[column])
        named = f"{scores[column].metric} above base"
        found[column] = replace(scores[column], score=items.score, stderr=items.stderr, metric=named)
    return found, [sample for own in by_column.values() for sample in own]


def _better(mine: Sequence[Sample], theirs: Sequence[Sample], score: Score) -> list[float]:
    """By item, in the order of `mine`."""
    values = []
    for own in (mine, theirs):
        items = from_samples(score.task, own)
        values.append(dict(zip(items.ids, items.numerators / items.denominators, strict=True)))
    sign = 1 if score.higher_is_better else -1
    model, base = values
    return [0.5 + 0.5 * float(np.sign(sign * (model[s["item"]] - base[s["item"]]))) for s in _named(mine)]


def _named(samples: Sequence[Sample]) -> list[Sample]:
    return [sample | {"item": str(sample["item"])} for sample in samples]


def _by_column(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample["column"], []).append(sample)
    return found


def _read(folder: Path) -> list[Sample]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
