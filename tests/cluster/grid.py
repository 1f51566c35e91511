"""What a grid has to hold wherever its cells ran: each stage once, a folder a cell, a report."""

import json
import os
import subprocess
import sys
from collections import Counter
from datetime import datetime
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# ORPO: both branches need nothing but their data, so jobs that start together train both at once
TINY = (
    "experiment=smoke",
    "preference=orpo",
    "sft.max_steps=6",
    "preference.max_steps=6",
    "callbacks=none",
    "trainer.progress_bar=false",
)
GRID = (*TINY, "-m", "lambda=1e-4,1e-3", "merge=ties,dare")


def train(logs: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """`python train.py <words>` into `logs`, with this folder's modules at hand."""
    environ = os.environ | {"PYTHONPATH": str(HERE)} | env
    return subprocess.run(
        command_of(logs, *words), cwd=ROOT, env=environ, capture_output=True, text=True, timeout=240
    )


def command_of(logs: Path, *words: str) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), *words, f"logs={logs}"]


def meeting(folder: Path, processes: int) -> str:
    """The word that lets no training begin before so many processes train: nothing depends on their speed."""
    return f"+callbacks.meet={{_target_: meet.Meet, folder: '{folder}', processes: {processes}}}"


def assert_each_stage_once(logs: Path, *, lambdas: int = 2) -> None:
    """After a grid of so many lambdas and two merges."""
    stages = {"data": 2, "sft": lambdas, "preference": 1, "merge": 2 * lambdas, "evaluate": 2 * lambdas}
    finished = Counter(p.parts[-3] for p in (logs / "stages").glob("*/*/stage.json"))
    assert finished == stages
    assert not [p for p in (logs / "stages").glob("*/*") if p.suffix not in ("", ".lock")]
    folder = max((logs / "hydra").iterdir())
    assert sum(p.name.isdigit() and p.is_dir() for p in folder.iterdir()) == 2 * lambdas
    assert (logs / "report" / "results.csv").read_text().count("\n") == 1 + 2 * lambdas


def record(logs: Path, stage: str) -> list[dict]:
    """stage.json of every finished stage of that name."""
    return [json.loads(p.read_text()) for p in sorted((logs / "stages" / stage).glob("*/stage.json"))]


def assert_branches_overlap(logs: Path) -> None:
    """The preference branch and an SFT branch were trained at the same time, thus by different processes."""
    (preference,) = (span(r) for r in record(logs, "preference"))
    spans = [span(r) for r in record(logs, "sft")]
    assert any(begin < preference[1] and preference[0] < end for begin, end in spans)


def span(stage: dict) -> tuple[float, float]:
    """When the stage began and ended, seconds since 1970."""
    end = datetime.fromisoformat(stage["run"]["finished"]).timestamp()
    return end - stage["run"]["seconds"], end


def sft_adapter(logs: Path, penalty: float) -> dict[str, Tensor]:
    """Of the SFT branch with that lambda."""
    (key,) = (
        r["key"] for r in record(logs, "sft") if r["identity"]["config"]["branch"]["l1"]["weight"] == penalty
    )
    return load_file(logs / "stages" / "sft" / key / "adapter" / "adapter_model.safetensors")
