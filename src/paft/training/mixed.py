"""A frozen base plus the deltas of several branches, each tensor's times numbers: to learn them, and to score soups.

Of two LoRAs a linear layer adds what their factors make of its input. Any other tensor is mixed itself when its module
runs: the base's plus the deltas in float32, rounded once to the model's type. Its gradient goes to the numbers alone
and is not kept, and its deltas stay in their files: one at a time is in memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from paft.delta.base import find_name
from paft.delta.delta import StoredDelta
from paft.delta.statistics import LowRank, dense, in_torch
from paft.delta.stored import StoredFactors
from paft.logps import Head
from paft.model.full import parameters_of
from paft.model.policy import FrozenPolicy


class Mixed(nn.Module):
    """A frozen linear layer plus the branches' low-rank deltas, each times its coefficient."""

    def __init__(
        self, layer: nn.Module, deltas: Sequence[LowRank | None], coefficients: nn.Parameter
    ) -> None:
        super().__init__()
        self.layer, self.deltas, self.on = layer, deltas, True
        self.coefficients = coefficients

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        for coefficient, delta in zip(self.coefficients, self.deltas, strict=True):
            if delta is not None and self.on:
                added = (x.float() @ delta.A.T) @ delta.B.T
                out = out + (coefficient * delta.scaling * added).to(out.dtype)
        return out


class MixedWeight(NamedTuple):
    """A tensor that is mixed itself."""

    deltas: Sequence[StoredDelta | None]
    """Of each branch; None where it leaves the tensor alone."""
    coefficients: nn.Parameter


class _Sum(torch.autograd.Function):
    """The base's tensor plus all deltas times their coefficients, which alone have a gradient."""

    @staticmethod
    def forward(
        ctx: Any, coefficients: Tensor, weight: Tensor, deltas: Sequence[StoredDelta | None]
    ) -> Tensor:
        ctx.deltas = deltas
        total = weight.to(torch.float32, copy=True)
        for coefficient, stored in zip(coefficients, deltas, strict=True):
            if stored is not None:
                total.addcmul_(_like(weight, stored), coefficient)
        return total.to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        wide = grad.float()
        zero = wide.new_zeros(())
        slopes = [zero if stored is None else (wide * _like(wide, stored)).sum() for stored in ctx.deltas]
        return torch.stack(slopes), None, None


def _like(weight: Tensor, stored: StoredDelta) -> Tensor:
    return dense(in_torch(stored.load())).to(weight.device).view_as(weight)


class MixedPolicy(FrozenPolicy):
    """A base that mixes branches, given as tensor -> delta; in `reference()` it is the base alone."""

    def __init__(
        self, base: PreTrainedModel, branches: Sequence[Mapping[str, StoredDelta]], start: Sequence[float]
    ) -> None:
        super().__init__(base)
        self.on = True
        self.coefficients: dict[str, nn.Parameter] = {}
        """Tensor -> a number of each branch."""
        self.layers: list[Mixed] = []
        self.mixing: dict[nn.Module, dict[str, MixedWeight]] = {}
        """Module -> the parameters of its own that are mixed."""
        weights, found = dict(base.named_parameters()), {}
        for name in dict.fromkeys(name for branch in branches for name in branch):
            own = torch.tensor(list(start), dtype=torch.float32, device=base.device)
            self.coefficients[name] = nn.Parameter(own)
            deltas = [branch.get(name) for branch in branches]
            in_model = find_name(name, weights) or name
            if not self._mix_layer(in_model, deltas, self.coefficients[name]):
                found[weights[in_model]] = MixedWeight(deltas, self.coefficients[name])
        self._mix_weights(found)

    @torch.no_grad()
    def weigh(self, coefficients: Sequence[float]) -> None:
        """Give every tensor these numbers of the branches."""
        for own in self.coefficients.values():
            own.copy_(torch.tensor(list(coefficients)))

    def _mix_layer(self, name: str, deltas: Sequence[StoredDelta | None], coefficients: nn.Parameter) -> bool:
        """Whether the tensor is the weight of a linear layer that low-rank deltas change, and is mixed so."""
        path, _, parameter = name.rpartition(".")
        layer = self.base.get_submodule(path)
        low_rank = all(delta is None or isinstance(delta, StoredFactors) for delta in deltas)
        is_inner = isinstance(layer, nn.Linear) and layer is not self.base.get_output_embeddings()
        if not low_rank or not is_inner or parameter != "weight":
            return False
        device = self.base.device
        loaded = [None if delta is None else in_torch(delta.load()) for delta in deltas]
        factors = [delta.to(device) if isinstance(delta, LowRank) else None for delta in loaded]
        mixed = Mixed(layer, factors, coefficients)
        parent, _, last = path.rpartition(".")
        setattr(self.base.get_submodule(parent), last, mixed)
        self.layers.append(mixed)
        return True

    def _mix_weights(self, found: Mapping[nn.Parameter, MixedWeight]) -> None:
        """In every module that has them: tied ones have several."""
        for module in self.base.modules():
            own = {n: found[p] for n, p in parameters_of(module).items() if p in found}
            if own:
                self.mixing[module] = own
                module.register_forward_pre_hook(self._mix)

    def _mix(self, module: nn.Module, _: Any = None) -> None:
        """Before a module runs: what it reads under a parameter's name is the mixed one."""
        for name, (deltas, coefficients) in self.mixing[module].items():
            weight = parameters_of(module)[name]
            # found before what is registered
            module.__dict__[name] = _Sum.apply(coefficients, weight, deltas) if self.on else weight

    def _outputs(self, input_ids: Tensor, **kwargs: Any) -> tuple[Tensor, Head | None]:
        if (head := self.base.get_output_embeddings()) in self.mixing:
            self._mix(head)  # its weight may be read without a call
        return super()._outputs(input_ids, **kwargs)

    @contextmanager
    def reference(self) -> Iterator[None]:
        self._switch(on=False)
        with torch.no_grad():
            yield
        self._switch(on=True)

    def _switch(self, *, on: bool) -> None:
        self.on = on
        for layer in self.layers:
            layer.on = on
