"""The `statistics` stage: what a branch's own training rows say of the tensors it changes, for merges that ask.

The model is the branch's own, base plus delta, in float32 and run the plain way, a row at a time: every layer is then
called as it is. Layers of one input, as the projections of an attention, share one Gram matrix. Fisher information is
that of any tensor, a Gram matrix of linear layers only.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from transformers.pytorch_utils import Conv1D

from paft.chat.tokens import IGNORE, Encoded, EncodedAnswer, EncodedPair
from paft.config import DType, Statistic
from paft.data.tokens import read_preference, read_sft
from paft.delta.base import find_name
from paft.files.jsonfile import write_json
from paft.graph.configs import StatisticsStage
from paft.graph.stage import Stage
from paft.logps import label_logps
from paft.merge.branches import read_branches
from paft.merge.statistics import ALIKE, FILE
from paft.model.adapters import add_stored
from paft.model.base import base_folder
from paft.model.paths import FastPaths
from paft.proof.base import load_base
from paft.proof.record import device_of
from paft.store.context import Context
from paft.training.batches import row_order
from paft.training.taken import folder_of_branch

Accumulated = dict[str, Tensor]
"""Name of a weight -> a sum over rows, float32."""


def run(
    stage: Stage[StatisticsStage], inputs: dict[str, Path], out: Path, context: Context
) -> dict[str, Any]:
    """Write statistics.safetensors; returns how many rows and tokens it is a mean over."""
    config, settings = stage.config, context.running.trainer
    offline = context.running.offline
    folder = base_folder(config.model, offline=offline)
    branch = folder_of_branch(stage.inputs["branch"], inputs["branch"], offline=offline)
    deltas = read_branches(folder, {config.branch: branch})[config.branch]
    model = load_base(folder, replace(config.model, dtype=DType.float32), FastPaths())
    add_stored(model, [deltas])
    model.to(torch.device(device_of(settings)))  # type: ignore[arg-type]
    weights = weights_of(model, deltas)
    rows = texts(config, inputs["data"])
    shown = tqdm(rows, "statistics", unit=" rows", disable=not settings.progress_bar)
    alike: dict[str, str] = {}
    if config.statistic is Statistic.fisher:
        sums = fishers(model, weights, shown)
    else:
        sums, alike = grams(model, linear_layers(model, weights), shown)
    count = len(rows) if config.statistic is Statistic.fisher else sum(len(row.input_ids) for row in rows)
    save_file({name: (total / count).contiguous().cpu() for name, total in sums.items()}, out / FILE)
    write_json(out / ALIKE, alike)
    return {"rows": len(rows), "tokens": sum(len(row.input_ids) for row in rows)}


def weights_of(model: PreTrainedModel, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """The parameters that tensors of the base are in the model, under the base's names."""
    held = dict(model.named_parameters())
    return {name: held[find_name(name, held) or name] for name in names}


def linear_layers(model: PreTrainedModel, weights: Mapping[str, nn.Parameter]) -> dict[str, nn.Linear]:
    """The linear layers among whose weights these are; one whose weight is an embedding's too is none.

    Raises `ValueError` for linear layers whose weights are stored as [in, out].
    """
    others = {
        p: m for m in model.modules() if not isinstance(m, nn.Linear) for p in m.parameters(recurse=False)
    }
    for name, weight in weights.items():
        if isinstance(others.get(weight), Conv1D) and weight.ndim == 2:
            raise ValueError(
                f"the merge measures inputs of linear layers with weights [out, in], and {name} is stored as [in, out] "
                "(Conv1D); choose one that looks at no inputs, as merge=fisher"
            )
    layers = {m.weight: m for m in model.modules() if isinstance(m, nn.Linear) and m.weight not in others}
    return {name: layers[weight] for name, weight in weights.items() if weight in layers}


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
    model: PreTrainedModel, named: Mapping[str, nn.Parameter], rows: Iterable[Encoded]
) -> Accumulated:
    """Sums over rows of the squared gradient of the log-likelihood of a row's labels, in the shape of each weight."""
    weights = list(named.values())
    sums = [torch.zeros_like(weight) for weight in weights]
    with differentiable(weights):
        for row in rows:
            ids, labels = (torch.tensor([x], device=model.device) for x in row)
            total = label_logps(model(input_ids=ids, use_cache=False).logits, labels).sum()
            gradients = torch.autograd.grad(total, weights, allow_unused=True)  # some experts, by a short row
            for squares, gradient in zip(sums, gradients, strict=True):
                if gradient is not None:
                    squares.addcmul_(gradient, gradient)
    return dict(zip(named, sums, strict=True))


@contextmanager
def differentiable(weights: Sequence[Tensor]) -> Iterator[None]:
    for weight in weights:
        weight.requires_grad_(True)
    yield
    for weight in weights:
        weight.requires_grad_(False)
