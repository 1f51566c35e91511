"""The `sft` and `preference` stages of a branch that is taken, not trained."""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paft.config import TakenKind
from paft.delta.adapter import read_adapter
from paft.delta.checkpoint import read_difference
from paft.delta.delta import StoredDelta
from paft.delta.full import trained_folder
from paft.delta.statistics import measured
from paft.files.fingerprint import adapter_files, files_sha256
from paft.files.hub import folder_of
from paft.files.jsonfile import read_object, write_json
from paft.graph.configs import TakenStage
from paft.graph.stage import Stage
from paft.graph.taken import refuse_changed_model
from paft.model.base import base_folder
from paft.store.context import Context


def run(stage: Stage[TakenStage], inputs: dict[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Copy the adapter to `out/adapter`, of a whole model nothing, and write `sparsity.json`; returns the metrics.

    Raises `ValueError` for what cannot be read, and for a folder that changed after the run was planned.
    """
    config, offline = stage.config, context.running.offline
    base, folder = (
        base_folder(config.model, offline=offline),
        folder_of(config.path or config.hub, offline=offline),
    )
    deltas: Mapping[str, StoredDelta]
    match config.kind:
        case TakenKind.adapter:
            deltas = read_adapter(_copied(config, folder, out), base)
            stated = read_object(folder / "adapter_config.json").get("base_model_name_or_path")
        case TakenKind.checkpoint:
            refuse_changed_model(stage.name, config, folder)
            deltas = read_difference(base, folder)
            stated = read_object(folder / "config.json").get("_name_or_path")
    sparsity = measured(deltas)
    _refuse_diverged(folder, sparsity["layers"])
    write_json(out / "sparsity.json", sparsity)
    shares = {name: sparsity[name] for name in ("mean_over_layers", "over_elements")}
    return {"taken": config.title, "kind": config.kind.value, "stated_base": stated, "sparsity": shares}


def folder_of_branch(stage: Stage, made: Path, *, offline: bool) -> Path:
    """Where the delta of a branch is read from whose stage made a folder: in it, or a whole model where it lies.

    Raises `ValueError` for a model that is gone, or is another one than when the branch was taken.
    """
    config = stage.config
    if not isinstance(config, TakenStage) or config.kind is TakenKind.adapter:
        return trained_folder(made)
    folder = folder_of(config.path or config.hub, offline=offline)
    refuse_changed_model(stage.name, config, folder)
    return folder


def _refuse_diverged(folder: Path, layers: Mapping[str, Mapping[str, float]]) -> None:
    for name, statistics in layers.items():
        if not math.isfinite(statistics["l2"]):
            raise ValueError(
                f"{folder} minus its base holds NaN or infinite values in {name}: the training diverged; take another"
            )


def _copied(config: TakenStage, folder: Path, out: Path) -> Path:
    """The copy of an adapter folder's own files."""
    copy = out / "adapter"
    copy.mkdir(exist_ok=True)
    for path in adapter_files(folder):
        shutil.copyfile(path, copy / path.name)
    if config.sha256 and (now := files_sha256(adapter_files(copy))) != config.sha256:
        raise ValueError(
            f"{folder} changed after this run was planned: its sha256 was {config.sha256[:12]}, now it is {now[:12]}. "
            "No stage was made from it; put the old files back, or give the same command again to run with the new ones"
        )
    return copy
