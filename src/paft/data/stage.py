"""The `data` stage: one source's rows as tokens in one chat template."""

from pathlib import Path
from typing import Any

from paft.chat.limits import max_positions
from paft.config import FileSource
from paft.data.prepare import prepare_preference, prepare_sft, prepare_unpaired
from paft.graph.build import refuse_changed
from paft.graph.configs import DataStage
from paft.graph.stage import Stage
from paft.model.base import base_folder, load_tokenizer
from paft.store.context import Context


def run(stage: Stage[DataStage], inputs: dict[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Write train.parquet, and validation.parquet and held-out rows where there are some; returns their counts.

    Raises `ValueError` for a row that cannot be read, by file, row and field, and for a file that changed after the
    run was planned or while it was read.
    """
    config = stage.config
    base = base_folder(config.model, offline=context.running.offline)
    tokenizer = load_tokenizer(base, config.template, trust_remote_code=config.model.trust_remote_code)
    of_branch = {"sft": prepare_sft, "preference": prepare_preference}
    prepare = prepare_unpaired if config.unpaired else of_branch[config.branch]
    refuse_changed(config)
    counts = prepare(config.source, tokenizer, out, max_positions(base))
    refuse_changed(config)
    if isinstance(config.source, FileSource):  # no part of the key, and what people know the rows by
        return counts | {"file": config.source.title}
    return counts
