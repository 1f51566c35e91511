"""One flat row for each finished evaluation of a store; importing this module loads no torch, no matplotlib.

Everything about a cell is in its own folder: stage.json holds the whole lineage, so a row survives its
merged model and its adapters being deleted.
"""

import hashlib
import json
import logging
import math
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from paft.config.model import gguf_title
from paft.report.labels import Row, ranked
from paft.report.saved import is_saved, saved_rows
from paft.store.jsonfile import read_object
from paft.training.target import reached

log = logging.getLogger("paft")

# fmt: off
HEAD = ("base", "data", "paradigm", "preference", "lambda", "merge", "variant", "seed", "evaluate", "limit")
TAIL = (
    "average", "in_average", "lower_is_better", "sft_sparsity", "preference_sparsity", "sft_hoyer", "preference_hoyer",
    "sft_zeros", "preference_zeros", "sft_rank", "preference_rank", "sft_norm", "preference_norm", "sft_nll",
    "sign_conflict", "cosine", "rounded_back", "sft_lr", "preference_lr", "preference_beta", "l1_of", "l1_method",
    "l1_target", "l1_reached", "sft_data", "preference_data", "sft_recipe", "preference_recipe", "template", "finished",
    "commit", "family", "sft_key", "preference_key", "merge_key", "evaluate_key",
)
# fmt: on
GROUPS = {
    "Slerp": "slerp",
    "TaskArithmetic": "task_arithmetic",
    "Ties": "ties",
    "DareTies": "dare",
    "DareLinear": "dare_linear",
    "Linear": "linear",
}
"""Type of a merge config -> its name on the command line."""
SPARSITY = {
    "sparsity": "share_below_1e-5",
    "zeros": "share_zero",
    "hoyer": "hoyer",
    "rank": "effective_rank",
}
"""Column of a branch -> its measure in sparsity.json."""


def rows(store: Path) -> list[Row]:
    """A row for every finished evaluation, in the order of the paper's Table 1 within each scope.

    `store` may be a saved report (`paft.report.saved`) in place of a store. A folder that cannot be read is left out
    with a warning that names it. Folders with a dot in their name are the store's own: unfinished, or moved aside.
    """
    if is_saved(store):
        return ranked(saved_rows(store))
    found = []
    for folder in sorted((store / "evaluate").glob("*")):
        if folder.is_dir() and "." not in folder.name:
            try:
                found.append(row(folder))
            except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
                log.warning("%s is left out of the report: %s: %s", folder, type(error).__name__, error)
    return ranked(found)


def require_rows(store: Path) -> list[Row]:
    """`rows`. Raises `ValueError` for a store without any."""
    table = rows(store)
    if not table:
        command = shlex.join(["python", "train.py", f"store={store}"])
        raise ValueError(
            f"{store} holds no finished evaluation; run `{command}` (the stores of docs/study.md: `make study`), "
            "or give another --store"
        )
    return table


def row(folder: Path) -> Row:
    """The row of one evaluate folder `<store>/evaluate/<key>`.

    Raises `OSError`, `ValueError`, `LookupError`, `TypeError` or `AttributeError` for a damaged folder.
    """
    store = folder.parents[1]
    record, results = (read_object(folder / name) for name in ("stage.json", "results.json"))
    if record["key"] != folder.name:
        raise ValueError(f"it is a copy of {record['stage']} {record['key']} under another name")
    merge = record["identity"]["inputs"].get("model")
    branches = merge["inputs"] if merge else {}
    keys = {"merge_key": key_of(merge) if merge else "", "evaluate_key": folder.name}
    keys |= {f"{name}_key": key_of(branch) for name, branch in branches.items()}
    report = merge_report(store, keys)
    found = dict.fromkeys(HEAD) | _cell(record["identity"], merge) | _labels_of(branches)
    found |= {"variant": report.get("variant", ""), "family": family(record["identity"])} | _scores(results)
    for name in branches:
        trained = store / name / keys[f"{name}_key"]
        sparsity = _read_if_there(trained / "sparsity.json")
        means = sparsity.get("mean_over_layers", {})
        found |= {f"{name}_{column}": number(means.get(measure)) for column, measure in SPARSITY.items()}
        found[f"{name}_norm"] = number(sparsity.get("over_elements", {}).get("l2"))
        if name == "sft":
            metrics = _read_if_there(trained / "stage.json").get("metrics", {})
            found["sft_nll"] = number(metrics.get("validation/nll"))
            found["l1_reached"] = number(reached(branches[name]["config"]["branch"]["l1"], sparsity))
    found |= {name: number(report.get(name)) for name in ("sign_conflict", "cosine", "rounded_back")}
    run = record.get("run", {})
    found |= {"finished": run.get("finished", ""), "commit": (run.get("git") or {}).get("commit") or ""}
    return dict.fromkeys(TAIL) | {"sft_key": "", "preference_key": ""} | found | keys


def merge_report(store: Path, row: Row) -> dict[str, Any]:
    """The row's merge.json from its evaluation, else from its merged model, else {}."""
    evaluation, merge = (store / stage / row[f"{stage}_key"] for stage in ("evaluate", "merge"))
    return _read_if_there(evaluation / "merge.json", merge / "merge.json")


def columns(table: list[Row]) -> list[str]:
    """Every column of the rows, in the order of results.csv: setting, merge options, scores, the rest."""
    seen = list(dict.fromkeys(column for r in table for column in r))
    options = [c for c in seen if c.startswith("merge.")]
    scores = [c for c in seen if c not in {*HEAD, *options, *TAIL}]
    return [*HEAD, *options, *scores, *TAIL]


def key_of(identity: Mapping[str, Any]) -> str:
    """`paft.stage.Stage.key` of the stage with this identity, from the lineage in stage.json alone."""
    keys = {name: key_of(stage) for name, stage in identity["inputs"].items()}
    return _digest({**identity, "inputs": keys})


def family(identity: Mapping[str, Any]) -> str:
    """What the cells that differ by their seed alone have in common: a key of the lineage without seeds.

    Seeds of data and of the evaluation stay: other rows and other items are another cell. A seed of the drop masks
    stays unless it follows the training's, as it does by default.
    """
    return _digest(_seedless(identity, _seed(identity)))


def _seedless(identity: Mapping[str, Any], seed: int | None) -> dict[str, Any]:
    config = dict(identity["config"])
    if identity["stage"] in ("sft", "preference"):
        config.pop("seed", None)
    for part in ("only", "method"):  # of a reference, of a merge
        if isinstance(config.get(part), dict) and config[part].get("seed") == seed:
            config[part] = {name: value for name, value in config[part].items() if name != "seed"}
    inputs = {name: _seedless(stage, seed) for name, stage in identity["inputs"].items()}
    return {**identity, "config": config, "inputs": inputs}


def _seed(identity: Mapping[str, Any]) -> int | None:
    """The seed the lineage was trained with."""
    if "branch" in identity["config"] and "seed" in identity["config"]:
        return int(identity["config"]["seed"])
    seeds = (_seed(stage) for stage in identity["inputs"].values())
    return next((seed for seed in seeds if seed is not None), None)


def _recipe(stage: Mapping[str, Any]) -> str:
    """What the trainings that differ by lambda and seed alone have in common: settings and data."""
    branch = dict(stage["config"]["branch"])
    branch["l1"] = {name: value for name, value in branch.get("l1", {}).items() if name != "weight"}
    return _digest(
        {**stage["config"], "branch": branch, "seed": None, "data": key_of(stage["inputs"]["data"])}
    )


def _digest(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _cell(evaluate: Mapping[str, Any], merge: Mapping[str, Any] | None) -> Row:
    config = evaluate["config"]
    cell = {
        "base": gguf_title(str(config["model"].get("file", ""))) or str(config["model"]["name"]),
        "template": config["template"],
        "paradigm": "base",
        "merge": "",
    }
    cell |= {"evaluate": _evaluation(config["evaluate"]), "limit": config["evaluate"]["limit"]}
    if merge is None:
        return cell
    method, inputs = merge["config"]["method"], sorted(merge["inputs"])
    kind = method["type"]
    cell |= merge_options(method)
    if kind != "Apply":
        return cell | {"paradigm": "parallel", "merge": GROUPS.get(kind, kind)}
    return cell | {"paradigm": inputs[0] if len(inputs) == 1 else "sequential"}


def merge_options(method: Mapping[str, Any]) -> Row:
    """The columns of a merge's options."""
    return {f"merge.{name}": _flat(value) for name, value in method.items() if name != "type"}


def _evaluation(config: Mapping[str, Any]) -> str:
    """The evaluation's name, with what makes its scores another thing: the items, or the type of the weights."""
    split, dtype = config.get("split", "full"), config.get("dtype")
    return " ".join(
        [str(config["name"]), *([f"({split})"] if split != "full" else []), *([dtype] if dtype else [])]
    )


def _labels_of(branches: Mapping[str, Any]) -> Row:
    found: Row = {"preference": "", "sft_data": "", "preference_data": ""}
    for name, stage in branches.items():
        branch = stage["config"]["branch"]
        found[f"{name}_data"] = _source(stage["inputs"]["data"]["config"])
        found[f"{name}_lr"] = branch["lr"]
        found[f"{name}_recipe"] = _recipe(stage)
        found["seed"] = stage["config"]["seed"]
        if name == "sft":
            found |= {"lambda": branch["l1"]["weight"], "l1_of": branch["l1"]["of"]}
            found |= {
                "l1_method": branch["l1"].get("method"),
                "l1_target": branch["l1"].get("target_sparsity"),
            }
        else:
            found |= {"preference": branch["type"].lower(), "preference_beta": branch["beta"]}
    return found | {"data": " + ".join(filter(None, (found["sft_data"], found["preference_data"])))}


def _source(data: Mapping[str, Any]) -> str:
    """The data stage's source in a few words. A file's name is no part of any identity, its sha256 is."""
    source = data["source"]
    digest = (data.get("files") or {}).get("train", "")[:8]
    name = "/".join(filter(None, (source.get("repo"), source.get("name")))) or source.get("skill")
    size = source.get("num_rows") if source.get("max_rows") is None else source["max_rows"]
    return (name or f"file {digest}") + (f" ({size} rows)" if size else "")


def refuse_taken(columns: Collection[str]) -> None:
    """Raise `ValueError` for a column of an evaluation that the report has already."""
    if taken := sorted({*columns} & {*HEAD, *TAIL}):
        raise ValueError(f"the report has its own column {taken[0]!r}; rename it in evaluate.tasks")


def _scores(results: Mapping[str, Any]) -> Row:
    tasks = results["tasks"]
    refuse_taken(tasks)
    lower = [column for column, task in tasks.items() if not task["higher_is_better"]]
    averaged = [column for column, task in tasks.items() if task["in_average"]]
    found: Row = {"average": number(results["average"])}
    for column, task in tasks.items():
        found |= {column: float(task["score"]), f"{column}_stderr": number(task["stderr"])}
    if mixed := sorted({*lower} & {*averaged}):
        log.warning("no average of %s: lower is better in %s", ", ".join(averaged), ", ".join(mixed))
        found["average"] = None
    return found | {"in_average": " ".join(averaged), "lower_is_better": " ".join(lower)}


def number(value: Any) -> float | None:
    """`value` as a finite float, or None."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _flat(value: Any) -> Any:
    return ",".join(map(str, value)) if isinstance(value, list) else value


def _read_if_there(*paths: Path) -> dict[str, Any]:
    for path in paths:
        if path.is_file():
            try:
                return read_object(path)
            except (OSError, ValueError) as error:
                log.warning("%s cannot be read: %s", path, error)
    return {}
