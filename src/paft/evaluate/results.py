"""Scores out of lm-eval's result dictionary, by the rules of the leaderboard the paper used."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from paft.config import EvaluateConfig, TaskConfig
from paft.evaluate.items import from_samples
from paft.evaluate.parts import metric_of, metrics_of, part, parts, sizes, subtasks
from paft.files.jsonfile import read_object

log = logging.getLogger("paft")

BACKEND = ("backend", "backend_version")
"""What results.json calls what computed the answers; older files have no version."""


@dataclass(frozen=True)
class Score:
    """One column: the score, its standard error over items (None where lm-eval gives none), and what made it."""

    task: str
    metric: str
    score: float
    stderr: float | None
    higher_is_better: bool
    in_average: bool
    num_fewshot: int | None
    version: str | None
    num_items: int | None


def score(column: str, config: TaskConfig, raw: Mapping[str, Any]) -> Score:
    """One column of the table from lm-eval's results. Raises `ValueError` naming what is missing."""
    names = subtasks(config, raw)
    _warn_of_direction(column, config, raw.get("higher_is_better", {}).get(names[0], {}))
    scored = [part(column, of, config, raw) for of in parts(config, raw)]
    versions = {str(raw.get("versions", {}).get(name)) for name in names}
    return Score(
        task=config.task,
        metric=" ".join(metrics_of(config)),
        score=sum(p.score for p in scored) / len(scored),
        stderr=_mean_error([p.stderr for p in scored]),
        higher_is_better=config.higher_is_better,
        in_average=config.in_average,
        num_fewshot=raw.get("n-shot", {}).get(names[0]),
        version=",".join(sorted(versions)),
        num_items=sum(sizes(names, raw)) or None,
    )


def with_stderr(score: Score, scored: Sequence[Mapping[str, Any]]) -> Score:
    """Ratios of sums have no error in lm-eval: bits per byte, (log-likelihood, bytes) per item, and shares of all
    instructions."""
    if score.stderr is not None or not any(isinstance(s["value"], tuple | list | dict) for s in scored):
        return score
    return replace(score, stderr=from_samples(score.task, scored).stderr)


def _warn_of_direction(column: str, config: TaskConfig, directions: Mapping[str, bool | None]) -> None:
    if config.higher_is_better and directions.get(metric_of(config).partition(",")[0]) is False:
        log.warning(
            "evaluate.tasks.%s takes more as better, and lm-eval says that lower %s of %s is better: "
            "set higher_is_better: false and in_average: false",
            column,
            config.metric,
            config.task,
        )


def _mean_error(errors: list[float | None]) -> float | None:
    """Standard error of a mean of independent scores."""
    known = [e for e in errors if e is not None]
    return math.sqrt(sum(e * e for e in known)) / len(errors) if len(known) == len(errors) else None


def average(scores: Mapping[str, Score]) -> float | None:
    """Plain mean of the columns marked `in_average`, as the paper's AVERAGE."""
    values = [s.score for s in scores.values() if s.in_average]
    return sum(values) / len(values) if values else None


@dataclass(frozen=True)
class Results:
    """What results.json says of one evaluation; `as_json` writes it."""

    tasks: dict[str, Score]
    """By column, in table order."""
    average: float | None
    backend: str = ""
    """What computed the answers, and its version; empty of an evaluation whose answers were judged."""

    @classmethod
    def read(cls, folder: Path) -> "Results":
        """Of a finished evaluate folder.

        Raises `OSError`, `ValueError`, `LookupError`, `TypeError` or `AttributeError` for a damaged file.
        """
        content = read_object(folder / "results.json")
        return cls(
            {column: _score(task) for column, task in content["tasks"].items()},
            _finite(content["average"]),
            " ".join(str(content[name]) for name in BACKEND if content.get(name)),
        )

    def objective(self, column: str) -> float:
        """What a search makes as large as it can: the column's score, or minus it where lower is better.

        Raises `ValueError` for an average of no columns.
        """
        if column != "average":
            task = self.tasks[column]
            return task.score if task.higher_is_better else -task.score
        if self.average is None:
            raise ValueError(
                "no column of evaluate.tasks is in the average; set evaluate.objective to one of them"
            )
        return self.average


def _score(task: Mapping[str, Any]) -> Score:
    """One column of results.json; what an older file does not hold is None."""
    values: dict[str, Any] = {f.name: task.get(f.name) for f in fields(Score)}
    return Score(**values | {"score": float(task["score"]), "stderr": _finite(task["stderr"])})


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def as_json(scores: Mapping[str, Score], config: EvaluateConfig) -> dict[str, Any]:
    return {
        "tasks": {column: asdict(s) for column, s in scores.items()},
        "average": average(scores),
        "apply_chat_template": config.apply_chat_template,
        "batch_size": config.batch_size,
        "limit": config.limit,
        "split": config.split.value,
    }
