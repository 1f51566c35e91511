"""The `sft` and `preference` stages of a branch that is a soup: several trainings, averaged."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paft.chat.standalone import copy_tokenizer, tokenizer_folder
from paft.config import HubModel, ModelConfig
from paft.delta.adapter import read_adapter
from paft.files.jsonfile import write_json
from paft.graph.configs import SoupStage
from paft.graph.stage import Stage
from paft.merge.apply import plan_sum
from paft.merge.as_adapter import write_adapter
from paft.model.base import base_folder
from paft.store.context import Context
from paft.training.taken import measured


def run(stage: Stage[SoupStage], inputs: dict[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Write the mean of the inputs' deltas to `out/adapter`, and `sparsity.json`; returns the metrics."""
    return write_mean([*inputs.values()], stage.config.model, out, offline=context.running.offline)


def write_mean(trainings: Sequence[Path], model: ModelConfig, out: Path, *, offline: bool) -> dict[str, Any]:
    """Write the mean of the trainings' deltas to `out/adapter`, and `sparsity.json`; returns the metrics.

    The mean of N LoRA deltas s_i B_i A_i is one of the sum of their ranks: all A_i one below the other, and all
    s_i / N B_i side by side. Nothing is lost.
    """
    base, adapter = base_folder(model, offline=offline), out / "adapter"
    members = {str(number): folder / "adapter" for number, folder in enumerate(trainings)}
    merge = plan_sum(base, members, weights=[1 / len(members)] * len(members))
    report = write_adapter(merge, adapter, base_name=model.repo if isinstance(model, HubModel) else None)
    origin = members["0"] / "paft.json"  # all the same, or `plan_sum` had refused them
    shutil.copyfile(origin, adapter / origin.name)
    if (brought := tokenizer_folder(members.values())) is not None:
        copy_tokenizer(brought, adapter)
    sparsity = measured(read_adapter(adapter, base))
    write_json(out / "sparsity.json", sparsity)
    shares = {name: sparsity[name] for name in ("mean_over_layers", "over_elements")}
    return {"trainings": len(members), "rank": report["rank"], "sparsity": shares}
