"""The `merge` stage: the base and the adapters of its inputs as one model folder."""

from pathlib import Path
from typing import Any

from paft.chat.standalone import copy_tokenizer, tokenizer_folder, write_tokenizer
from paft.delta.adapter import NAMES_OF_BASE
from paft.files.jsonfile import write_json
from paft.graph.configs import Apply, MergeStage, TakenStage
from paft.graph.stage import Stage
from paft.merge.apply import apply_adapters, merge_adapters
from paft.model.base import base_folder, load_tokenizer
from paft.store.context import Context


def run(stage: Stage[MergeStage], inputs: dict[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Write the merged model with its tokenizer, and merge.json; returns what that holds, but for the layers."""
    config = stage.config
    base = base_folder(config.model, offline=context.running.offline)
    adapters = {name: folder / "adapter" for name, folder in inputs.items()}
    taken = any(isinstance(branch.config, TakenStage) for branch in stage.inputs.values())
    same = NAMES_OF_BASE if taken else ()  # the user says what a taken one is a change of
    if isinstance(config.method, Apply):
        report = apply_adapters(base, adapters, out, config.method.dtype, same=same)
    else:
        report = merge_adapters(base, adapters, config.method, out, same=same)
    write_tokenizer_of(config, base, adapters, out)
    write_json(out / "merge.json", report)
    return {name: value for name, value in report.items() if name != "layers"}


def write_tokenizer_of(config: MergeStage, base: Path, adapters: dict[str, Path], out: Path) -> None:
    """The tokenizer and template that the branches were trained with."""
    if (brought := tokenizer_folder(adapters.values())) is not None:
        copy_tokenizer(brought, out)
        return
    # adapters of an earlier release, or of a tokenizer that is not read alike without its config.json
    trusted = config.model.trust_remote_code
    tokenizer = load_tokenizer(base, config.template, trust_remote_code=trusted)
    write_tokenizer(tokenizer, base, out, trust_remote_code=trusted)
