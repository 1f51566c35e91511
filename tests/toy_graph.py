"""A graph of the pipeline's shape whose stages only sleep and note what they did; also a script to run it.

python toy_graph.py STORE NOTES SECONDS
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from paft.graph.stage import Stage
from paft.store.store import Run, Store

DATA_SFT, DATA_PREFERENCE = Stage("data", 1, {"rows": "sft"}), Stage("data", 1, {"rows": "preference"})
SFT = Stage("sft", 1, {"lr": 1e-3}, {"data": DATA_SFT})
PREFERENCE = Stage("preference", 1, {"lr": 1e-4}, {"data": DATA_PREFERENCE})
MERGE = Stage("merge", 1, {"method": "ties"}, {"sft": SFT, "preference": PREFERENCE})
CELL = Stage("evaluate", 1, {"tasks": ["honesty"]}, {"model": MERGE})


def noting(notes: Path, seconds: float = 0.0) -> Run:
    """A run function that appends one line per stage to `notes`, when it ends."""

    def run(stage: Stage, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
        started = time.time()
        with (out / "attempts.txt").open("a") as file:
            file.write(f"{os.getpid()}\n")
        missing = [name for name, folder in inputs.items() if not (folder / "stage.json").is_file()]
        assert not missing, f"{stage} started before {missing}"
        time.sleep(seconds)
        (out / "sub").mkdir(exist_ok=True)
        (out / "sub" / "result.txt").write_text("".join(sorted(inputs)) + stage.key)
        line = {"stage": stage.name, "key": stage.key, "pid": os.getpid(), "from": started, "to": time.time()}
        with notes.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return {"attempts": len((out / "attempts.txt").read_text().splitlines())}

    return run


def read_notes(notes: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []


if __name__ == "__main__":
    store, notes_file, duration = sys.argv[1:]
    Store(store).ensure(CELL, noting(Path(notes_file), float(duration)), poll_seconds=0.02)
