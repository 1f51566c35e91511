"""What was measured of a row's adapters and merge, as far as their folders are still there."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paft.files.jsonfile import read_object
from paft.report.lineage import Identity, is_taken, trainings
from paft.report.row import finite
from paft.training.target import reached

log = logging.getLogger("paft")

MERGED = (
    *("sign_conflict", "cosine", "shared", "conflict_of_shared", "overlap"),
    *("delta_l2", "rounded_back", "adapter_error"),
)
"""What a merge says of itself in merge.json."""
SPARSITY = {
    "sparsity": "share_below_1e-5",
    "zeros": "share_zero",
    "hoyer": "hoyer",
    "rank": "effective_rank",
}
"""Column of a branch -> its measure in sparsity.json."""


def measures(folder: Path, branch: str, identity: Identity) -> dict[str, Any]:
    """What was measured of a trained adapter, as far as its folder is still there."""
    sparsity = read_if_there(folder / "sparsity.json")
    means = sparsity.get("mean_over_layers", {})
    values = {f"{branch}_{column}": finite(means.get(measure)) for column, measure in SPARSITY.items()}
    values[f"{branch}_norm"] = finite(sparsity.get("over_elements", {}).get("l2"))
    if branch == "sft":
        metrics = read_if_there(folder / "stage.json").get("metrics", {})
        values["sft_nll"] = finite(metrics.get("validation/nll"))
        if not is_taken(identity):
            training, *_ = trainings(identity)
            values["l1_reached"] = reached(training["config"]["branch"]["l1"], sparsity)
    return values


def chosen(folder: Path) -> str:
    """Which of its trainings a greedy soup is the mean of, by which loss; empty of any other branch."""
    metrics = read_if_there(folder / "stage.json").get("metrics") or {}
    candidates = metrics.get("candidates") or []
    if not candidates:
        return ""
    members, number = metrics["chosen"], (len(candidates) + 1) // 2
    told = f"{len(members)} of {number} trainings, {', '.join(members)}; validation loss"
    return f"{told} {metrics['validation/loss']:.6g}, of the single ones {_losses(candidates[:number])}"


def _losses(candidates: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{candidate['loss']:.6g} ({candidate['members'][0]})" for candidate in candidates)


def read_if_there(*paths: Path) -> dict[str, Any]:
    """The object in the first of these files that can be read; {} where there is none. A broken one is warned of."""
    for path in paths:
        if path.is_file():
            try:
                return read_object(path)
            except (OSError, ValueError) as error:
                log.warning("%s cannot be read: %s", path, error)
    return {}
