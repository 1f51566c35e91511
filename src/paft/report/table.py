"""One flat row for each finished evaluation of a store; importing this module loads no torch, no matplotlib.

Everything about a cell is in its own folder: stage.json holds the whole lineage, so a row survives its
merged model and its adapters being deleted.
"""

import logging
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from paft.config import Norm
from paft.config.model import gguf_title
from paft.evaluate.results import Results
from paft.files.jsonfile import read_object
from paft.report.lineage import (
    Identity,
    branches,
    family,
    is_taken,
    key_of,
    lambdas,
    recipe,
    seed_of,
    trainings,
)
from paft.report.measured import MERGED, measures, read_if_there
from paft.report.names import TAKEN, merge_name, objective_name
from paft.report.options import merge_options, options
from paft.report.row import Row, finite, is_option
from paft.report.saved import is_saved, saved_rows
from paft.report.scope import ranked

log = logging.getLogger("paft")

# fmt: off
HEAD = ("base", "data", "paradigm", "preference", "lambda", "merge", "norm", "variant", "seed", "evaluate", "limit")
TAIL = (
    "average", "in_average", "lower_is_better", "sft_sparsity", "preference_sparsity", "sft_hoyer", "preference_hoyer",
    "sft_zeros", "preference_zeros", "sft_rank", "preference_rank", "sft_norm", "preference_norm", "sft_nll",
    "sign_conflict", "cosine", "shared", "conflict_of_shared", "overlap", "delta_l2", "rounded_back", "adapter_error",
    "sft_lr", "preference_lr", "preference_beta", "l1_of", "l1_method", "l1_target", "l1_reached",
    "sft_data", "preference_data", "sft_recipe", "preference_recipe", "template", "backend", "finished", "commit",
    "family", "sft_key", "preference_key", "merge_key", "evaluate_key",
)
# fmt: on
COMMAND = "command"
"""The column with the command line that made a row, where its stage.json tells."""
DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError)
"""What reading a folder raises that is not as it was written."""


def rows(store: Path) -> list[Row]:
    """A row for every finished evaluation, in the order of the paper's Table 1 within each scope.

    `store` may be a saved report (`paft.report.saved`) in place of a store. A folder that cannot be read is left out
    with a warning that names it. Folders with a dot in their name are the store's own: unfinished, or moved aside.
    """
    if is_saved(store):
        return ranked(saved_rows(store))
    table = []
    for folder in sorted((store / "evaluate").glob("*")):
        if folder.is_dir() and "." not in folder.name:
            try:
                table.append(row(folder))
            except DAMAGE as error:
                log.warning("%s is left out of the report: %s: %s", folder, type(error).__name__, error)
    return ranked(table)


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
    record, results = read_object(folder / "stage.json"), Results.read(folder)
    if record["key"] != folder.name:
        raise ValueError(f"it is a copy of {record['stage']} {record['key']} under another name")
    identity = record["identity"]
    merge = identity["inputs"].get("model")
    keys = {"sft_key": "", "preference_key": "", "merge_key": key_of(merge) if merge else ""}
    keys |= {f"{name}_key": key_of(branch) for name, branch in branches(identity).items()}
    keys["evaluate_key"] = folder.name
    report = merge_report(store, keys)
    columns = dict.fromkeys(HEAD) | _setting(identity) | _trained(store, branches(identity))
    columns |= {"seed": seed_of(identity), "backend": results.backend}
    columns |= {"variant": report.get("variant", ""), "family": family(identity)} | _scores(results)
    for name in branches(identity):
        columns |= measures(store / name / keys[f"{name}_key"], name, branches(identity)[name])
    columns |= {name: finite(report.get(name)) for name in MERGED}
    run = record.get("run", {})
    columns |= {"finished": run.get("finished", ""), "commit": (run.get("git") or {}).get("commit") or ""}
    last = options(identity) | {COMMAND: run.get("command") or ""}
    return Row(dict.fromkeys(TAIL) | columns | keys | last)


def merge_report(store: Path, row: Mapping[str, Any]) -> dict[str, Any]:
    """The row's merge.json from its evaluation, else from its merged model, else {}."""
    evaluation, merge = (store / stage / row[f"{stage}_key"] for stage in ("evaluate", "merge"))
    return read_if_there(evaluation / "merge.json", merge / "merge.json")


def columns(table: Sequence[Row]) -> list[str]:
    """Every column of the rows, in the order of results.csv: setting, merge options, scores, the rest, all options."""
    seen = list(dict.fromkeys(column for r in table for column in r))
    merge = [c for c in seen if c.startswith("merge.")]
    last = [c for c in seen if (is_option(c) and c not in merge) or c == COMMAND]
    scores = [c for c in seen if c not in {*HEAD, *merge, *TAIL, *last}]
    return [*HEAD, *merge, *scores, *TAIL, *last]


def refuse_taken(columns: Collection[str]) -> None:
    """Raise `ValueError` for a column of an evaluation that the report has already."""
    if taken := sorted(c for c in columns if c in {*HEAD, *TAIL, COMMAND} or is_option(c)):
        raise ValueError(f"the report has its own column {taken[0]!r}; rename it in evaluate.tasks")


# --- parts of a row ----------------------------------------------------------------------------------


def _setting(evaluate: Identity) -> dict[str, Any]:
    config, merge = evaluate["config"], evaluate["inputs"].get("model")
    cell = {
        "base": gguf_title(str(config["model"].get("file", ""))) or str(config["model"]["name"]),
        "template": config["template"],
        "paradigm": "base",
        "merge": "",
    }
    cell |= {
        "evaluate": _evaluation(config["evaluate"], evaluate["inputs"].get("judge")),
        "limit": config["evaluate"]["limit"],
    }
    if merge is None:
        return cell
    method = merge["config"]["method"]
    kind = method["type"]
    cell |= merge_options(method)
    if kind != "Apply":
        norm = method.get("norm", Norm.own.value)
        return cell | {"paradigm": "parallel", "merge": merge_name(kind), "norm": norm}
    return cell | {"paradigm": _baseline(merge)}


def _baseline(merge: Identity) -> str:
    """The paradigm of a plain sum of deltas, by what its branches were trained on."""
    branches = merge["inputs"]
    if any("sft_data" in branch["inputs"] for branch in branches.values()):
        return "joint"
    if len(branches) == 1:
        return str(next(iter(branches)))
    if any("preference" in stage["inputs"] for stage in trainings(branches["sft"])):
        return "preference_first"
    return "expo" if merge["config"]["method"].get("expo") else "sequential"


def _evaluation(config: Mapping[str, Any], judged: Identity | None) -> str:
    """Its name, with what makes its scores another thing: the items, the type of the weights, the judge."""
    split, dtype = config.get("split", "full"), config.get("dtype")
    judge = judged["config"]["judge"] if judged else {}
    by = str(judge.get("model") or judge.get("sha256", "")[:8])
    return " ".join(
        [
            str(config["name"]),
            *([f"({split})"] if split != "full" else []),
            *([dtype] if dtype else []),
            *([f"by {by}"] if by else []),
        ]
    )


def _trained(store: Path, branches: Mapping[str, Identity]) -> dict[str, Any]:
    columns: dict[str, Any] = {"preference": "", "sft_data": "", "preference_data": ""}
    for name, made in branches.items():
        if is_taken(made):
            columns |= _taken(store, name, made)
            continue
        stage, *_ = trainings(made)
        branch = stage["config"]["branch"]
        columns[f"{name}_data"] = _source(store, stage["inputs"]["data"])
        if "sft_data" in stage["inputs"]:
            columns["sft_data"] = _source(store, stage["inputs"]["sft_data"])
        columns[f"{name}_lr"] = branch["lr"]
        columns[f"{name}_recipe"] = recipe(made)
        if name == "sft":
            l1 = branch["l1"]
            columns |= {"lambda": fmean(lambdas(made)), "l1_of": l1["of"]}  # a soup's own are in its options
            columns |= {"l1_method": l1.get("method"), "l1_target": l1.get("target_sparsity")}
        else:
            columns |= {"preference": objective_name(branch["type"]), "preference_beta": branch.get("beta")}
    return columns | {"data": " + ".join(filter(None, (columns["sft_data"], columns["preference_data"])))}


def _taken(store: Path, name: str, stage: Identity) -> dict[str, Any]:
    """Of a branch that was taken: what it is called stands beside its stage, as no path is part of an identity."""
    config = stage["config"]
    metrics = read_if_there(store / name / key_of(stage) / "stage.json").get("metrics") or {}
    title = config["hub"].partition("@")[0] or metrics.get("taken") or config["sha256"][:8]
    objective = {"preference": TAKEN} if name == "preference" else {}
    return {f"{name}_data": f"{TAKEN}: {title}", f"{name}.{config['kind']}": title} | objective


def _source(store: Path, data: Identity) -> str:
    """The data stage's source in a few words. A file's name is no part of any identity, its sha256 is."""
    source = data["config"]["source"]
    name = "/".join(filter(None, (source.get("repo"), source.get("name")))) or source.get("skill")
    if not name:
        digest = (data["config"].get("files") or {}).get("train", "")[:8]
        metrics = read_if_there(store / "data" / key_of(data) / "stage.json").get("metrics") or {}
        file = metrics.get("file")
        name = f"{file} ({digest})" if file else f"file {digest}"
    size = source.get("num_rows") if source.get("max_rows") is None else source["max_rows"]
    return name + (f" ({size} rows)" if size else "")


def _scores(results: Results) -> dict[str, Any]:
    refuse_taken(results.tasks)
    lower = [column for column, task in results.tasks.items() if not task.higher_is_better]
    averaged = [column for column, task in results.tasks.items() if task.in_average]
    scores: dict[str, Any] = {"average": results.average}
    for column, task in results.tasks.items():
        scores |= {column: task.score, f"{column}_stderr": task.stderr}
    if mixed := sorted({*lower} & {*averaged}):
        log.warning("no average of %s: lower is better in %s", ", ".join(averaged), ", ".join(mixed))
        scores["average"] = None
    return scores | {"in_average": " ".join(averaged), "lower_is_better": " ".join(lower)}
