"""Full fine-tuning: every weight of the base is trained, as a float32 delta that the stored weight follows.

The model runs in its own type. A weight's gradient goes to its delta in float32, which the optimizer moves, and after
each of its steps the weight is that of the base plus its delta, rounded once: a change too small for the type is not
lost but kept in the delta, which is all that is saved. It is what float32 master weights do (Micikevicius et al. 2018,
arXiv:1710.03740), but for weight decay, which pulls to the base and not to 0.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from paft.delta.full import FOLDER, save_full_delta
from paft.delta.rows import matrix_shape
from paft.logps import Head
from paft.model.adapters import save_fingerprints
from paft.model.policy import FrozenPolicy
from paft.model.shards import own_rows, whole

DELTA = "{}_delta"
"""Name of the delta of a parameter, in the same module: what is sharded and gathered with it."""


class Trained(NamedTuple):
    """A weight that is trained, where it was found first; tied ones are found several times."""

    name: str
    """In the base."""
    module: nn.Module
    parameter: str
    """In the module."""

    @property
    def stored(self) -> nn.Parameter:
        """What the model runs with."""
        return parameters_of(self.module)[self.parameter]

    @property
    def delta(self) -> nn.Parameter:
        return parameters_of(self.module)[DELTA.format(self.parameter)]


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """A module's own, as they are registered now, whatever it reads under their names."""
    return dict(module.named_parameters(recurse=False))


class _Followed(torch.autograd.Function):
    """The weight as it is stored; its gradient is the delta's, in float32."""

    @staticmethod
    def forward(ctx: Any, delta: Tensor, weight: Tensor) -> Tensor:
        return weight.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.float(), None


class FullPolicy(FrozenPolicy):
    """A base whose parameters all move, tied ones together; in `reference()` it is the base again.

    `hold_base` must be called when every parameter is where it stays, in shards or whole.
    """

    folder = FOLDER

    def __init__(self, base: PreTrainedModel) -> None:
        super().__init__(base)
        self.trained: list[Trained] = []
        self.start: list[Tensor] = []
        self.moving: dict[nn.Module, list[str]] = {}
        """Module -> the parameters of its own that are trained."""
        self.called: set[nn.Module] = set()
        deltas: dict[nn.Parameter, nn.Parameter] = {}
        for at, module in list(base.named_modules()):
            floats = {n: p for n, p in parameters_of(module).items() if p.is_floating_point()}
            for name, parameter in floats.items():
                if parameter not in deltas:
                    deltas[parameter] = nn.Parameter(torch.zeros_like(parameter, dtype=torch.float32))
                    self.trained.append(Trained(f"{at}.{name}".lstrip("."), module, name))
                module.register_parameter(DELTA.format(name), deltas[parameter])
            if floats:
                self.moving[module] = list(floats)
                module.register_forward_pre_hook(self._lead)

    def _lead(self, module: nn.Module, _: Any = None) -> None:
        """Before a module runs: what it reads under a parameter's name leads back to the delta."""
        self.called.add(module)
        parameters = parameters_of(module)
        for name in self.moving[module]:
            delta, stored = parameters[DELTA.format(name)], parameters[name]
            module.__dict__[name] = _Followed.apply(delta, stored)  # found before what is registered

    def _outputs(self, input_ids: Tensor, **kwargs: Any) -> tuple[Tensor, Head | None]:
        if (head := self.base.get_output_embeddings()) in self.moving:
            self._lead(head)  # its weight may be read without a call
        return super()._outputs(input_ids, **kwargs)

    @torch.no_grad()
    def hold_base(self) -> None:
        """Keep the weights as they are now: what deltas are added to."""
        self.start = [own_rows(t.stored).detach().clone() for t in self.trained]

    @torch.no_grad()
    def follow(self) -> None:
        """Let every weight be the base's plus its delta, as they are now."""
        self._write(moved=True)

    def _write(self, *, moved: bool) -> None:
        if isinstance(self, FSDPModule):
            self.reshard()  # what was gathered for a forward pass without a backward pass
        for i, trained in enumerate(self.trained[: len(self.start)]):
            weight = own_rows(trained.stored).data  # a graph that still needs the weight finds it as it was
            start = self.start[i] = self.start[i].to(weight.device)
            weight.copy_(start.float() + own_rows(trained.delta) if moved else start)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """The base policy: its own weights, no gradient."""
        with torch.no_grad():
            self._write(moved=False)
            try:
                yield
            finally:
                self._write(moved=True)

    def deltas(self) -> Iterator[Tensor]:
        """Float32 [out, in] of every trained tensor as a matrix, whole, one at a time."""
        return (_matrix(whole(t.delta.detach())) for t in self.trained)

    def stored_deltas(self) -> Sequence[Tensor]:
        return [t.delta for t in self.trained]

    def own_deltas(self, *, whole_A: bool = True) -> Sequence[Tensor]:
        return [own_rows(t.delta) for t in self.trained]

    def adapted_weights(self) -> list[str]:
        return [t.name for t in self.trained]

    def refuse_untouched(self) -> None:
        """After a forward pass: raise `ValueError` where the model reads weights of a module that it never calls, so
        that they would stay as they are. Single experts may be left out of a batch; all modules of a name may not."""
        called: dict[str, bool] = {}
        for at, module in self.base.named_modules():
            if module in self.moving:
                kind = at.rpartition(".")[2]
                called[kind] = called.get(kind, False) or module in self.called
        if unused := sorted(kind for kind, was in called.items() if not was):
            raise ValueError(
                f"tuning=full trains every weight, and {self.base.config.model_type} never calls its modules {unused} "
                "as they are, so that theirs would stay untrained; set tuning=lora"
            )

    def save(self, folder: Path, fingerprints: dict[str, str]) -> None:
        """Write the deltas, each sparse where that is smaller, and paft.json with the base, tokenizer and template.

        On several devices every rank must call it: shards are gathered, and rank 0 writes.
        """
        first = not dist.is_initialized() or dist.get_rank() == 0
        deltas = {}
        for trained in self.trained:
            delta = whole(trained.delta.detach())
            if first:
                deltas[trained.name] = delta.cpu()
        if first:
            save_full_delta(deltas, folder)
            save_fingerprints(folder, fingerprints)


def _matrix(tensor: Tensor) -> Tensor:
    return tensor.reshape(matrix_shape(tensor.shape))
