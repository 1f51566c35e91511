"""The scores of a judged evaluation, out of the annotations of its `judge` stage."""

from pathlib import Path
from typing import Any

from paft.config.judge import LENGTH_CONTROLLED, AlpacaEvalConfig
from paft.evaluate.results import Score
from paft.judge.metrics import length_controlled_rate, mean, shares, standard_error
from paft.judge.outputs import Row, read_annotations
from paft.judge.stage import ANNOTATIONS


def judged_scores(folder: Path, config: AlpacaEvalConfig) -> tuple[dict[str, Score], list[dict[str, Any]]]:
    """Every column's score, a share, and per item how far its answer is preferred, from a finished `judge` folder.

    Raises `ValueError` where nothing was judged, and where the length-controlled rate cannot be had.
    """
    rows = read_annotations(folder / ANNOTATIONS, "the judge stage's")
    scores: dict[str, Score] = {}
    samples: list[dict[str, Any]] = []
    for column, task in config.tasks.items():
        values = _values(rows, task.metric, config)
        if not values:
            raise ValueError("none of the judge's answers names a better one, so there is no win rate")
        scores[column] = Score(
            task=task.task,
            metric=str(task.metric),
            score=mean(list(values.values())),
            stderr=standard_error(list(values.values())),
            higher_is_better=True,
            in_average=task.in_average,
            num_fewshot=None,
            version=str(rows[0].get("annotator")),
            num_items=len(values),
        )
        samples += [{"column": column, "item": item, "value": value} for item, value in values.items()]
    return scores, samples


def _values(rows: list[Row], metric: str | None, config: AlpacaEvalConfig) -> dict[int, float]:
    """Number of the instruction -> its part of a metric, of all that have one."""
    if metric == LENGTH_CONTROLLED:
        _, predicted = length_controlled_rate(rows, Path(config.length_data) if config.length_data else None)
        return dict(enumerate(predicted))
    return {number: shares([row])[0] for number, row in enumerate(rows) if row["preference"] is not None}
