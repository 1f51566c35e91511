"""The `merge` stage: the base and the adapters of its inputs as one model folder, or as one adapter."""

import logging
import shutil
from pathlib import Path
from typing import Any

from paft.chat.standalone import copy_tokenizer, tokenizer_folder, write_tokenizer
from paft.config import HubModel, MergeOutput
from paft.delta.adapter import NAMES_OF_BASE
from paft.delta.full import trained_folder
from paft.files.hub import folder_of
from paft.files.jsonfile import write_json
from paft.graph.configs import Apply, MergeStage, TakenStage
from paft.graph.stage import Stage
from paft.graph.stages import TRAINED
from paft.graph.taken import refuse_changed_model
from paft.merge.apply import plan_merge, plan_sum, write_model
from paft.merge.as_adapter import write_adapter
from paft.merge.planned import PlannedMerge
from paft.merge.proof import described, prove_adapter, prove_model
from paft.model.base import base_folder, load_tokenizer
from paft.store.context import Context

log = logging.getLogger("paft")


def run(stage: Stage[MergeStage], inputs: dict[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Write the merged model, or `adapter/`, with its tokenizer, and merge.json; returns what that holds, but for the
    layers."""
    config = stage.config
    base = base_folder(config.model, offline=context.running.offline)
    models = models_of(stage, offline=context.running.offline)
    branches = [name for name in inputs if name in TRAINED]
    adapters = {name: trained_folder(inputs[name]) for name in branches if name not in models}
    folders = {name: models.get(name) or adapters[name] for name in branches}
    taken = any(isinstance(stage.inputs[name].config, TakenStage) for name in branches)
    same = NAMES_OF_BASE if taken else ()  # the user says what a taken one is a change of
    if isinstance(config.method, Apply):
        expo = config.method.expo
        merge = plan_sum(base, folders, config.method.dtype, same=same, expo=expo, sparse=config.method)
    else:
        merge = plan_merge(base, folders, config.method, same=same, inputs=inputs)
    as_adapter = config.method.output is MergeOutput.adapter
    report = _adapter(merge, config, adapters, out / "adapter") if as_adapter else _model(merge, config, out)
    write_tokenizer_of(config, base, adapters, out / "adapter" if as_adapter else out)
    write_json(out / "merge.json", report)
    return {name: value for name, value in report.items() if name != "layers"}


def models_of(stage: Stage[MergeStage], *, offline: bool) -> dict[str, Path]:
    """Branch -> the folder of the whole model that it was taken as.

    Raises `ValueError` for one that is gone, or is another one than when the branch was taken.
    """
    places = stage.config.checkpoints
    folders = {branch: folder_of(place, offline=offline) for branch, place in places.items()}
    for branch, folder in folders.items():
        refuse_changed_model(branch, stage.inputs[branch].config, folder)
    return folders


def _model(merge: PlannedMerge, config: MergeStage, out: Path) -> dict[str, Any]:
    report = write_model(merge, out)
    if config.method.prove:
        trusted = config.model.trust_remote_code
        report["proof"] = prove_model(merge, out, report, trust_remote_code=trusted)
        log.info("merge: %s", described(report["proof"]))
    return report


def _adapter(merge: PlannedMerge, config: MergeStage, adapters: dict[str, Path], out: Path) -> dict[str, Any]:
    name = config.model.repo if isinstance(config.model, HubModel) else None
    report = write_adapter(merge, out, rank=config.method.rank, base_name=name)
    origins = [folder / "paft.json" for folder in adapters.values()]
    if origins and all(path.is_file() for path in origins):  # all the same, or they had not been merged
        shutil.copyfile(origins[0], out / "paft.json")
    if config.method.prove:
        report["proof"] = prove_adapter(merge, out, trust_remote_code=config.model.trust_remote_code)
        log.info("merge: %s", described(report["proof"]))
    return report


def write_tokenizer_of(config: MergeStage, base: Path, adapters: dict[str, Path], out: Path) -> None:
    """The tokenizer and template that the branches were trained with; of whole models the base's, in the run's
    template, as they are evaluated."""
    if (brought := tokenizer_folder(adapters.values())) is not None:
        copy_tokenizer(brought, out)
        return
    # adapters of an earlier release, or of a tokenizer that is not read alike without its config.json
    trusted = config.model.trust_remote_code
    tokenizer = load_tokenizer(base, config.template, trust_remote_code=trusted)
    write_tokenizer(tokenizer, base, out, trust_remote_code=trusted)
