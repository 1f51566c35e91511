"""One flat row for each finished stage of a store: what it took, and what it ran on."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paft.files.jsonfile import read_object

log = logging.getLogger("paft")

VERSIONS = ("python", "paft", "torch", "transformers", "peft", "lm-eval")
COLUMNS = ("stage", "key", "seconds", "peak_memory_gb", "finished", "commit", "host", *VERSIONS)


def stage_rows(store: Path) -> list[dict[str, Any]]:
    """In the order they were finished; a folder that cannot be read is left out with a warning that names it."""
    stages = []
    for path in sorted(store.glob("*/*/stage.json")):
        if "." in path.parent.name:  # unfinished, or moved aside
            continue
        try:
            record = read_object(path)
            if (record["stage"], record["key"]) == path.parts[-3:-1]:
                stages.append(_row(record))
            elif path.parts[-3] != "evaluate":  # of these the rows of results.csv warn
                log.warning("%s is left out of the report: it is a copy under another name", path.parent)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            log.warning("%s is left out of the report: %s: %s", path, type(error).__name__, error)
    return sorted(stages, key=lambda row: (row["finished"], row["key"]))


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    """`seconds` are the stage's own: a merge and an evaluation that a training ran have rows of their own."""
    run, metrics = record["run"], record.get("metrics") or {}
    others = metrics.get("merge_then_evaluate_seconds", 0.0)
    return {
        "stage": record["stage"],
        "key": record["key"],
        "seconds": round(run["seconds"] - others, 1),
        "peak_memory_gb": round(run["peak_memory_bytes"] / 1e9, 2),
        "finished": run["finished"],
        "commit": (run.get("git") or {}).get("commit") or "",
        "host": run.get("host") or "",
        **{name: run["versions"].get(name, "") for name in VERSIONS},
    }
