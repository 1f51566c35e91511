"""The `statistics` stage: what a branch's own training rows say of the layers it adapts, for merges that ask.

The model is the branch's own, base plus delta, in float32 and run the plain way, a row at a time: every layer is then
called as it is. Layers of one input, as the projections of an attention, share one Gram matrix.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from paft.chat.tokens import IGNORE, Encoded, EncodedAnswer, EncodedPair
from paft.config import DType, Statistic
from paft.data.tokens import read_preference, read_sft
from paft.delta.adapter import read_adapter
from paft.files.jsonfile import write_json
from paft.graph.configs import StatisticsStage
from paft.graph.stage import Stage
from paft.logps import label_logps
from paft.merge.statistics import ALIKE, FILE
from paft.model.adapters import add_deltas
from paft.model.base import base_folder
from paft.model.paths import FastPaths
from paft.proof.base import load_base
from paft.proof.record import device_of
from paft.store.context import Context
from paft.training.batches import row_order

Accumulated = dict[str, Tensor]
"""Name of a weight -> a sum over rows, float32."""


def run(
    stage: Stage[StatisticsStage], inputs: dict[str, Path], out: Path, context: Context
) -> dict[str, Any]:
    """Write statistics.safetensors; returns how many rows and tokens it is a mean over."""
    config, settings = stage.config, context.running.trainer
    folder, adapter = base_folder(config.model, offline=context.running.offline), inputs["branch"] / "adapter"
    model = load_base(folder, replace(config.model, dtype=DType.float32), FastPaths())
    add_deltas(model, [adapter], folder)
    model.to(torch.device(device_of(settings)))  # type: ignore[arg-type]
    layers = linear_layers(model, list(read_adapter(adapter, folder)))
    rows = texts(config, inputs["data"])
    measure = fishers if config.statistic is Statistic.fisher else grams
    sums, alike = measure(
        model, layers, tqdm(rows, "statistics", unit=" rows", disable=not settings.progress_bar)
    )
    count = len(rows) if config.statistic is Statistic.fisher else sum(len(row.input_ids) for row in rows)
    save_file({name: (total / count).contiguous().cpu() for name, total in sums.items()}, out / FILE)
    write_json(out / ALIKE, alike)
    return {"rows": len(rows), "tokens": sum(len(row.input_ids) for row in rows)}


def linear_layers(model: PreTrainedModel, names: Sequence[str]) -> dict[str, nn.Linear]:
    """The layers whose weights an adapter changes. Raises `ValueError` for one that changes anything else."""
    modules = {name: model.get_submodule(name.rpartition(".")[0]) for name in names}
    layers = {n: m for n, m in modules.items() if isinstance(m, nn.Linear) and n.endswith(".weight")}
    if other := modules.keys() - layers:
        raise ValueError(
            f"the merge measures inputs and gradients of linear layers, and the adapter changes {min(other)}; choose a "
            "merge that looks at no rows"
        )
    return layers


def texts(config: StatisticsStage, data: Path) -> list[Encoded]:
    """The rows that are looked at, in the drawn order: SFT rows, or prompts with their chosen or good answers."""
    rows: Sequence[Any] = (read_sft if config.branch == "sft" else read_preference)(data, "train")
    drawn = (rows[i] for i in row_order(len(rows), seed=config.seed, epoch=0))
    wanted = (row for row in drawn if not isinstance(row, EncodedAnswer) or row.label)
    return [chosen_text(row) for row in islice(wanted, config.num_rows)]


def chosen_text(row: Encoded | EncodedPair | EncodedAnswer) -> Encoded:
    match row:
        case Encoded():
            return row
        case EncodedAnswer():
            return row.text
    return Encoded([*row.prompt_ids, *row.chosen_ids], [*[IGNORE] * len(row.prompt_ids), *row.chosen_ids])


def grams(
    model: PreTrainedModel, layers: dict[str, nn.Linear], rows: Iterable[Encoded]
) -> tuple[Accumulated, dict[str, str]]:
    """Sums of x x^T [in, in] over all tokens x that each layer reads, and which layers read those of another."""
    sums: Accumulated = {}
    first: dict[int, tuple[str, Tensor]] = {}
    """Of one pass: the layer that first read an input, which is held so that none takes its place in memory."""
    alike: dict[str, str] = {}

    def reading(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            owner, _ = first.setdefault(id(args[0]), (name, args[0]))
            if owner != name:
                alike[name] = owner
                return
            x = args[0].flatten(0, -2)
            sums[name] = torch.addmm(sums.get(name, x.new_zeros(())), x.T, x)

        return hook

    with ExitStack() as hooks, torch.no_grad():
        for name, layer in layers.items():
            hooks.callback(layer.register_forward_pre_hook(reading(name)).remove)
        for row in rows:
            first.clear()
            model(input_ids=torch.tensor([row.input_ids], device=model.device), use_cache=False)
    return sums, alike


def fishers(
    model: PreTrainedModel, layers: dict[str, nn.Linear], rows: Iterable[Encoded]
) -> tuple[Accumulated, dict[str, str]]:
    """Sums over rows of the squared gradient of the log-likelihood of a row's labels, [out, in] as each weight."""
    weights = [layer.weight for layer in layers.values()]
    sums = [torch.zeros_like(weight) for weight in weights]
    with differentiable(weights):
        for row in rows:
            ids, labels = (torch.tensor([x], device=model.device) for x in row)
            total = label_logps(model(input_ids=ids, use_cache=False).logits, labels).sum()
            for squares, gradient in zip(sums, torch.autograd.grad(total, weights), strict=True):
                squares.addcmul_(gradient, gradient)
    return dict(zip(layers, sums, strict=True)), {}


@contextmanager
def differentiable(weights: Sequence[Tensor]) -> Iterator[None]:
    for weight in weights:
        weight.requires_grad_(True)
    yield
    for weight in weights:
        weight.requires_grad_(False)
