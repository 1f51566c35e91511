"""`plan=true`: the graph with key, hit or miss, and a first estimate; loads no torch and runs nothing."""

import json
import statistics
from pathlib import Path

from rich.console import Console
from rich.table import Table

from paft.config import RunConfig
from paft.graph import unique
from paft.stage import Stage, Store

Past = dict[str, list[float]]


def show_plan(cells: list[tuple[RunConfig, Stage]]) -> None:
    """Print every stage of the cells once, inputs first, and what running them would take."""
    config = cells[0][0]
    store = Store(config.store, verify=False)
    needed = {s.key for _, cell in cells for s in store.missing(cell)}
    past = past_seconds(store.root)
    stages = unique(cell for _, cell in cells)
    table = Table(
        title=f"{len(cells)} cell{'s' * (len(cells) > 1)}, store {config.store}", title_justify="left"
    )
    for column in ("stage", "key", "state", "estimate", "what"):
        table.add_column(column, no_wrap=column != "what")
    total, unknown = 0.0, 0
    for stage in stages:
        state = "miss" if stage.key in needed else "hit" if store.complete(stage) else "not needed"
        seconds = estimate(stage, past) if state == "miss" else 0.0
        total += seconds or 0.0
        unknown += seconds is None
        shown = "" if state != "miss" else "?" if seconds is None else f"{seconds:.0f} s"
        table.add_row(stage.name, stage.key, state, shown, describe(stage))
    Console().print(table)
    print(f"{len(needed)} of {len(stages)} stages to run, about {total:.0f} s on this machine", end="")
    print(f" and {unknown} without a finished run of their kind to estimate from" if unknown else "")


def past_seconds(root: Path) -> Past:
    """Seconds per unit of work of the finished stages in the store, by kind."""
    past: Past = {}
    for path in root.glob("*/*/stage.json"):
        try:
            record = json.loads(path.read_text())
            kind = json.dumps([record["stage"], model_name(record["identity"])])
            own = record["run"]["seconds"] - record["metrics"].get("merge_then_evaluate_seconds", 0.0)
            seconds = own / units_of(record["identity"], record["metrics"])
        except (OSError, ValueError, LookupError, TypeError):
            continue  # damaged: reported when it is to be used
        past.setdefault(kind, []).append(seconds)
    return past


def estimate(stage: Stage, past: Past) -> float | None:
    """Median of what like stages took on this store, scaled by optimizer rows; None without a precedent."""
    like = past.get(json.dumps([stage.name, model_name(stage.identity)]))
    return None if not like else statistics.median(like) * units_of(stage.identity, {})


def units_of(identity: dict, metrics: dict) -> float:
    """Rows trained on, for a training stage; 1 for the others."""
    branch = identity["config"].get("branch")
    if not isinstance(branch, dict):
        return 1.0
    if branch["max_steps"]:
        return float(branch["max_steps"] * branch["global_batch_size"])
    source = identity["inputs"]["data"]["config"]["source"]
    rows = source.get("num_rows") or source.get("max_rows") or metrics.get("rows") or 1
    return float(rows * branch["epochs"])


def model_name(identity: dict) -> str:
    return str(identity["config"]["model"]["name"])


def describe(stage: Stage) -> str:
    """One line a person can tell stages apart by."""
    config = stage.identity["config"]
    match stage.name:
        case "data":
            source = config["source"]
            label = source.get("skill") or source.get("repo") or "file"
            return f"{config['branch']} rows of {label}, template {config['template']}"
        case "sft":
            branch = config["branch"]
            return f"{config['model']['name']}, lambda={branch['l1']['weight']:g}, lr={branch['lr']:g}"
        case "preference":
            branch = config["branch"]
            return f"{config['model']['name']}, {branch['type']} beta={branch['beta']:g}, lr={branch['lr']:g}"
        case "merge":
            method = {k: v for k, v in config["method"].items() if k != "type" and v is not None}
            return " ".join([config["method"]["type"], *(f"{k}={v}" for k, v in method.items())])
        case _:
            return f"{config['model']['name']} on {', '.join(config['evaluate']['tasks'])}"
