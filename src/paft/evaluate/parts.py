"""What a column is the plain mean of: tasks of lm-eval and their metrics, whole and item by item."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paft.config import TaskConfig


@dataclass(frozen=True)
class Part:
    """One metric of one task, or of several whose items count alike."""

    names: tuple[str, ...]
    metric: str


@dataclass(frozen=True)
class PartScore:
    """Its score and its standard error over items, None where lm-eval gives none."""

    score: float
    stderr: float | None


def parts(config: TaskConfig, raw: Mapping[str, Any]) -> list[Part]:
    """Every part of a column, each counting once."""
    names = subtasks(config, raw)
    grouped = [tuple(names)] if config.pooled else [(name,) for name in names]
    return [Part(group, metric) for metric in metrics_of(config) for group in grouped]


def metric_of(config: TaskConfig) -> str:
    """The metric a column is scored by, once `columns_of` has chosen where the config does not."""
    assert config.metric is not None
    return config.metric


def metrics_of(config: TaskConfig) -> list[str]:
    """The metrics that a column is the plain mean of."""
    return [metric_of(config), *config.mean_with]


def subtasks(config: TaskConfig, raw: Mapping[str, Any]) -> list[str]:
    """The results a column is the plain mean of: one task, or every member of a group.

    lm-eval weighs MMLU's 57 subjects by their number of questions; the leaderboard counts each subject once.
    """
    if config.mean_over is None:
        return [config.task]
    members = sorted(set(_members(config.task, raw.get("group_subtasks", {}))))
    averaged = [name for name in members if name.startswith(config.mean_over)]
    if not averaged:
        raise ValueError(
            f"no subtask of {config.task} starts with {config.mean_over!r}; lm-eval gave {members}"
        )
    return averaged


def _members(name: str, groups: Mapping[str, list[str]]) -> list[str]:
    """The tasks of a group and of the groups in it; of a task, itself."""
    if name not in groups:
        return [name]
    return [member for child in groups[name] for member in _members(child, groups)]


def part(column: str, of: Part, config: TaskConfig, raw: Mapping[str, Any]) -> PartScore:
    """The score of a part. Raises `ValueError` naming what is missing."""
    values = [_value(column, raw["results"], name, of.metric) for name in of.names]
    errors = [_stderr(raw["results"][name], of.metric) for name in of.names]
    score, error = (
        (values[0], errors[0]) if len(values) == 1 else _pooled(values, errors, sizes(of.names, raw))
    )
    if not config.above_chance:
        return PartScore(score, error)
    chance = chance_of(of.names, raw)
    if score <= chance:
        return PartScore(0.0, 0.0)
    return PartScore((score - chance) / (1 - chance), None if error is None else error / (1 - chance))


def items(column: str, config: TaskConfig, raw: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The column's metric of every item, under the column's filter: lm-eval keeps an item once per filter.

    `item` is the document's number, with what names its part before it where the column is a mean over several. The
    mean over parts of the mean of `value` is the score: above chance, an item of a part that is not has 0.
    """
    return [
        {"column": column, "item": _item(config, of, name, sample["doc_id"]), "value": value}
        for of in parts(config, raw)
        for name, sample, value in counted(column, of, config, raw)
    ]


def counted(
    column: str, of: Part, config: TaskConfig, raw: Mapping[str, Any]
) -> Iterable[tuple[str, Mapping[str, Any], Any]]:
    """The task, lm-eval's sample and the value of every one of a part's items."""
    metric, _, filter_name = of.metric.partition(",")
    chance = chance_of(of.names, raw) if config.above_chance else 0.0
    is_above = not chance or part(column, of, config, raw).score > 0
    for name in of.names:
        for sample in raw.get("samples", {}).get(name, []):
            if sample["filter"] == filter_name and metric in sample:
                value = _counted(sample[metric])
                if chance:
                    value = (value - chance) / (1 - chance) if is_above else 0.0
                yield name, sample, value


def _counted(value: Any) -> Any:
    """A list of truth values, of which all of all items are averaged, as how many hold of how many."""
    if isinstance(value, list) and all(isinstance(one, bool) for one in value):
        return {"sum": sum(value), "of": len(value)}
    return value


def _item(config: TaskConfig, of: Part, name: str, number: Any) -> Any:
    before = [of.metric.partition(",")[0]] if config.mean_with else []
    before += [name] if config.mean_over is not None and not config.pooled else []
    own = f"{name}:{number}" if config.pooled else number
    return "/".join([*before, str(own)]) if before else own


def chance_of(names: Iterable[str], raw: Mapping[str, Any]) -> float:
    """What guessing scores: one over the largest number of choices of an item; 0 where text is generated."""
    samples = (sample for name in names for sample in raw.get("samples", {}).get(name, []))
    most = max((len(sample["arguments"]) for sample in samples), default=1)
    return 1 / most if most > 1 else 0.0


def sizes(names: Sequence[str], raw: Mapping[str, Any]) -> list[int]:
    """The number of items of each task."""
    return [raw.get("n-samples", {}).get(name, {}).get("effective", 0) for name in names]


def _pooled(
    values: Sequence[float], errors: Sequence[float | None], counts: Sequence[int]
) -> tuple[float, float | None]:
    """The mean over all items of several tasks, and its standard error."""
    shares = [count / sum(counts) for count in counts]
    known = [share * error for share, error in zip(shares, errors, strict=True) if error is not None]
    error = math.sqrt(sum(e * e for e in known)) if len(known) == len(errors) else None
    return sum(share * value for share, value in zip(shares, values, strict=True)), error


def _value(column: str, results: Mapping[str, Any], task: str, metric: str) -> float:
    if task not in results or metric not in results[task]:
        given = [k for k in results.get(task, {}) if "," in k and "stderr" not in k]
        raise ValueError(
            f"evaluate.tasks.{column}: lm-eval gave no {metric!r} for {task}; it gave {given or list(results)}"
        )
    return float(results[task][metric])


def _stderr(result: Mapping[str, Any], metric: str) -> float | None:
    name, _, filter_name = metric.partition(",")
    value = result.get(f"{name}_stderr,{filter_name}")
    return value if isinstance(value, float) and math.isfinite(value) else None
