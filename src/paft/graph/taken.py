"""Branches that are taken, not trained: what is known of them before anything is loaded."""

import os
from collections.abc import Mapping
from pathlib import Path

from paft.config import BranchConfig, ModelConfig, TakenKind, require_pinned
from paft.files.fingerprint import adapter_files, files_sha256, folder_sha256
from paft.files.hub import PINNED
from paft.graph.configs import TakenStage
from paft.graph.stage import Stage


def taken(name: str, branch: BranchConfig, model: ModelConfig) -> TakenStage:
    """The stage of a branch with `adapter` or `checkpoint`; a folder is read for its sha256.

    Raises `ValueError` for what is neither a folder of that kind nor a commit on the hub.
    """
    assert branch.taken is not None
    kind, place = branch.taken
    at, folder = f"{name}.{kind.value}", Path(place)
    if not os.path.exists(folder) and (match := PINNED.fullmatch(place)):
        require_pinned(at, *match.groups())
        return TakenStage(model, kind, hub=place)
    if not os.path.isdir(folder):
        raise ValueError(
            f"{at}={place} is no folder on this disk; paths are relative to the folder you run train.py in. One of "
            "the Hugging Face hub is written with its commit, as user/repo@<40 digits>"
        )
    return TakenStage(model, kind, _sha256(at, folder, kind), path=place)


def _sha256(at: str, folder: Path, kind: TakenKind) -> str:
    has_adapter, has_model = ((folder / f"{of}config.json").is_file() for of in ("adapter_", ""))
    branch = at.partition(".")[0]
    if kind is TakenKind.adapter and not has_adapter:
        instead = f"; it is a whole model, which is {branch}.checkpoint={folder}" if has_model else ""
        raise ValueError(
            f"{at}={folder} is not a PEFT adapter folder: it holds no adapter_config.json{instead}"
        )
    if kind is TakenKind.checkpoint and has_adapter and not has_model:
        raise ValueError(
            f"{at}={folder} is a PEFT adapter, not a whole model; give it as {branch}.adapter={folder}"
        )
    return files_sha256(adapter_files(folder)) if kind is TakenKind.adapter else folder_sha256(folder)


def refuse_changed_model(branch: str, config: TakenStage, folder: Path) -> None:
    """Raise `ValueError` for a whole model that is gone, or not the one that the run was planned with."""
    at = f"{branch}.checkpoint={folder}"
    if not folder.is_dir():
        raise ValueError(
            f"{at} is gone: a merge reads it again. Put it back, or give its new place: {branch}.checkpoint=DIR"
        )
    if config.sha256 and (now := folder_sha256(folder)) != config.sha256:
        raise ValueError(
            f"{at} changed after this run was planned: its sha256 was {config.sha256[:12]}, now it is {now[:12]}. "
            "Nothing was made from it; put the old files back, or give the same command again to run with the new ones"
        )


def checkpoints(branches: Mapping[str, Stage]) -> dict[str, str]:
    """Where the branches lie that were taken as whole models."""
    configs = {name: stage.config for name, stage in branches.items()}
    return {
        name: config.path or config.hub
        for name, config in configs.items()
        if isinstance(config, TakenStage) and config.kind is TakenKind.checkpoint
    }
