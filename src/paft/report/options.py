"""Every option of an evaluation under its name on the command line, out of the lineage in stage.json."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import cache
from typing import Any

from paft.config import SoupKind, Tuning
from paft.config.checks import TYPES, UNLESS_DEFAULT, default_of
from paft.graph.stage import canonical
from paft.report.lineage import Identity, branches, is_greedy, is_taken, lambdas, trainings
from paft.report.row import Row, is_option

ALIASES = {
    "sft_lr": "sft.lr",
    "preference_lr": "preference.lr",
    "preference_beta": "preference.beta",
    "l1_of": "sft.l1.of",
    "l1_method": "sft.l1.method",
    "l1_target": "sft.l1.target_sparsity",
    "sft.l1.weight": "lambda",
    "evaluate.limit": "limit",
    "data.template": "template",
}
"""Another name of an option -> its column; results.csv keeps the names that older reports have, too."""
OWN_COLUMNS = ("sft.l1.weight", "evaluate.name", "evaluate.limit")
"""Options that results.csv has under a shorter name: lambda, evaluate, limit."""


def options(evaluate: Identity) -> dict[str, Any]:
    """`model.*`, `data.*`, `sft.*`, `preference.*`, `evaluate.*`, `judge.*`, `callbacks`; `merge.*` is `merge_options`.

    A value is a number, a truth value, text or None; lists are text with commas. An option that a row cannot have is
    left out: those of a branch that was not trained, and those of a penalty with lambda = 0.
    """
    trained = branches(evaluate)
    made = [stage for branch in trained.values() for stage in trainings(branch) or [branch]]
    model = next((stage["config"]["model"] for stage in made), evaluate["config"]["model"])
    options = dict(_flat("model", model))
    for name, branch in trained.items():
        if is_taken(branch):
            continue
        stage, *_ = trainings(branch)
        data = stage["inputs"]["data"]["config"]
        options |= _flat(f"data.{name}", {**data["source"], "files": data.get("files") or {}})
        options |= _flat(name, _in_effect(stage["config"]["branch"]))
        if texts := stage["inputs"].get("sft_data"):
            options |= _flat(
                "data.sft", {**texts["config"]["source"], "files": texts["config"].get("files") or {}}
            )
            options |= _flat("joint", stage["config"]["joint"])
        options |= {f"{name}.soup.{option}": value for option, value in _soup(branch)}
        if callbacks := stage["config"].get("callbacks"):
            options["callbacks"] = ",".join(_callback(c["callback"]) for c in callbacks)
    options |= _flat("evaluate", evaluate["config"]["evaluate"])
    if judge := evaluate["inputs"].get("judge"):
        options |= _flat("judge", judge["config"]["judge"])
    return {name: value for name, value in options.items() if name not in OWN_COLUMNS}


def merge_options(method: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a merge's options; those that were left at a default that keys do not hold are left out."""
    return {f"merge.{name}": _plain(value) for name, value in method.items() if name != "type"}


def column_of(name: str) -> str:
    """The column of an option that may have another name, too."""
    return ALIASES.get(name, name)


def applies(row: Row, option: str) -> bool:
    """Whether the row could have the option at all: its branch was trained, its penalty had a weight, it has a LoRA."""
    if option.startswith("sft.l1."):
        return bool(row.weight)
    branch, _, rest = option.partition(".")
    if rest.startswith("lora.") and row.option(f"{branch}.tuning") == Tuning.full.value:
        return False
    if not is_option(option):
        return True
    if option == "model.quantization":
        return row.is_trained
    match option.removeprefix("data.").partition(".")[0]:
        case "sft":
            return row.weight is not None
        case "preference":
            return bool(row.preference)
        case "merge":
            return row.merged
    return True


def _in_effect(branch: Mapping[str, Any]) -> Mapping[str, Any]:
    """Without what the training did not read: a penalty of weight 0, the adapter where all weights were trained."""
    unread = set() if (branch.get("l1") or {}).get("weight") else {"l1"}
    unread |= {"lora"} if branch.get("tuning") == Tuning.full.value else set()
    return {name: value for name, value in branch.items() if name not in unread}


def _soup(branch: Identity) -> Iterator[tuple[str, Any]]:
    """What is told of a branch of several trainings; nothing of one."""
    seeds = list(dict.fromkeys(training["config"]["seed"] for training in trainings(branch)))
    for name, values in (("seeds", seeds), ("lambdas", lambdas(branch))):
        if len(values) > 1:
            yield name, _plain(values)
    if is_greedy(branch):
        yield from (("kind", SoupKind.greedy.value), ("num_rows", branch["config"]["num_rows"]))


def _flat(at: str, config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Path -> value, with the defaults that a key leaves out."""
    schema = TYPES.get(str(config.get("type")))
    known = _left_out(schema) if schema else {}
    for name, value in {**known, **config}.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{at}.{name}", value)
        elif name != "type":
            yield f"{at}.{name}", _plain(value)


@cache
def _left_out(schema: type) -> dict[str, Any]:
    """Fields that keys hold only where they are not at their default -> that default."""
    rule = UNLESS_DEFAULT["identity"]
    return {f.name: canonical(default_of(f)) for f in fields(schema) if f.metadata.get("identity") == rule}


def _plain(value: Any) -> Any:
    """A list as text; empty text, which a CSV file cannot tell from nothing, is None."""
    text = ",".join(map(_text, value)) if isinstance(value, list) else value
    return None if text == "" else text


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True) if isinstance(value, Mapping | list) else str(value)


def _callback(spec: Mapping[str, Any]) -> str:
    """`EarlyStopping(patience=2)`"""
    given = " ".join(f"{name}={_text(value)}" for name, value in spec.items() if name != "_target_")
    return f"{str(spec.get('_target_', '')).rpartition('.')[2]}({given})"
