"""A base whose layers add several LoRA deltas, each times a number: to learn coefficients, and to score soups."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from paft.delta.base import find_name
from paft.delta.statistics import LowRank, read_adapter
from paft.model.policy import FrozenPolicy


class Mixed(nn.Module):
    """A frozen linear layer plus several deltas of its weight, each times a number that may be learnt."""

    def __init__(self, layer: nn.Module, deltas: Sequence[LowRank | None], start: Sequence[float]) -> None:
        super().__init__()
        self.layer, self.on = layer, True
        self.deltas = [None if delta is None else _as_multiplied(delta, layer) for delta in deltas]
        self.coefficients = nn.Parameter(torch.tensor(list(start), dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        for coefficient, delta in zip(self.coefficients, self.deltas, strict=True):
            if delta is not None and self.on:
                added = (x.float() @ delta.A.T) @ delta.B.T
                out = out + (coefficient * delta.scaling * added).to(out.dtype)
        return out


def _as_multiplied(delta: LowRank, layer: nn.Module) -> LowRank:
    """The factors of an [out, in] weight, also where the layer stores its own as [in, out]."""
    return LowRank(delta.B.T, delta.A.T, delta.scaling) if isinstance(layer, Conv1D) else delta


class MixedPolicy(FrozenPolicy):
    """A base whose layers mix several adapters; with them off it is the reference policy."""

    def __init__(
        self, base: PreTrainedModel, adapters: Sequence[dict[str, LowRank]], start: Sequence[float]
    ) -> None:
        super().__init__(base)
        device, weights = base.device, dict(base.named_parameters())
        self.mixed: dict[str, Mixed] = {}
        for name in dict.fromkeys(name for adapter in adapters for name in adapter):
            path = (find_name(name, weights) or name).removesuffix(".weight")
            deltas = [adapter[name].to(device) if name in adapter else None for adapter in adapters]
            self.mixed[name] = Mixed(base.get_submodule(path), deltas, start).to(device)
            parent, _, last = path.rpartition(".")
            setattr(base.get_submodule(parent), last, self.mixed[name])

    @torch.no_grad()
    def weigh(self, coefficients: Sequence[float]) -> None:
        """Give every layer these factors of the adapters."""
        for layer in self.mixed.values():
            layer.coefficients.copy_(torch.tensor(list(coefficients)))

    @contextmanager
    def reference(self) -> Iterator[None]:
        for layer in self.mixed.values():
            layer.on = False
        with torch.no_grad():
            yield
        for layer in self.mixed.values():
            layer.on = True


def factors_of(adapter: Path, base: Path, asked_by: str) -> dict[str, LowRank]:
    """The factors of every layer. Raises `ValueError` for an adapter that changes a layer otherwise."""
    deltas = read_adapter(adapter, base)
    factors = {name: delta for name, delta in deltas.items() if isinstance(delta, LowRank)}
    if other := deltas.keys() - factors:
        raise ValueError(
            f"{asked_by} mixes LoRA factors, and {adapter} changes {min(other)} otherwise; leave it out"
        )
    return factors
