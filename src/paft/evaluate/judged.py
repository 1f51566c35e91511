"""The scores of a judged evaluation, out of the annotations of its `judge` stage."""

from pathlib import Path
from typing import Any

from paft.config.judged import LENGTH_CONTROLLED, RATING, TURNS, AlpacaEvalConfig, JudgedConfig
from paft.evaluate.results import Score
from paft.judge.metrics import length_controlled_rate, mean, shares, standard_error
from paft.judge.outputs import DRAW, Row, read_annotations, read_rows
from paft.judge.stage import ANNOTATIONS


def judged_scores(folder: Path, config: JudgedConfig) -> tuple[dict[str, Score], list[dict[str, Any]]]:
    """Every column's score, and per item what it is the mean of, from a finished `judge` folder.

    A win rate is a share, a rating from 1 to 10. Raises `ValueError` where nothing was judged, and where the
    length-controlled rate cannot be had.
    """
    file, compared = folder / ANNOTATIONS, isinstance(config, AlpacaEvalConfig)
    rows = (
        read_annotations(file, "the judge's") if compared else read_rows(file, "the judge's", ("category",))
    )
    scores: dict[str, Score] = {}
    samples: list[dict[str, Any]] = []
    for column, task in config.tasks.items():
        values = _compared(rows, task.metric, config) if compared else _rated(rows, task.metric)
        if not values:
            raise ValueError(f"none of the judge's answers could be read, so there is no {column}")
        scores[column] = Score(
            task=task.task,
            metric=str(task.metric),
            score=mean(list(values.values())),
            stderr=standard_error(list(values.values())),
            higher_is_better=True,
            in_average=task.in_average,
            num_fewshot=None,
            version=str(rows[0].get("judge") or rows[0].get("annotator")),
            num_items=len(values),
        )
        told = compared and task.metric != LENGTH_CONTROLLED
        samples += [
            {"column": column, "item": item, "value": value} | (_said(rows[item]) if told else {})
            for item, value in values.items()
        ]
    return scores, samples


def _compared(rows: list[Row], metric: str | None, config: JudgedConfig) -> dict[Any, float]:
    """Number of the instruction -> its part of a metric, of all that have one."""
    if metric == LENGTH_CONTROLLED:
        assert isinstance(config, AlpacaEvalConfig)
        _, predicted = length_controlled_rate(rows, Path(config.length_data) if config.length_data else None)
        return dict(enumerate(predicted))
    return {number: shares([row])[0] for number, row in enumerate(rows) if row["preference"] is not None}


def _said(row: Row) -> dict[str, Any]:
    """What was asked and answered, beside the reference's answer; the margin is how far it is from a draw."""
    said = {"prompt": row["instruction"], "expected": row["output_1"], "answer": row["output_2"]}
    return said | {"margin": (row["preference"] or DRAW) - DRAW}


def _rated(rows: list[Row], metric: str | None) -> dict[Any, float]:
    """Question and turn -> the rating of its answer."""
    turns = (0, 1) if metric == RATING else (TURNS.index(str(metric)),)
    rated = (row for row in rows if row["rating"] is not None and row["turn"] in turns)
    return {f"{row['question_id']}-{row['turn'] + 1}": row["rating"] for row in rated}
