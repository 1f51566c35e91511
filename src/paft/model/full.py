"""Full fine-tuning: every weight of the base is trained, as a float32 delta that the stored weights follow.

The model runs in its own type. Its gradients are added up in float32, the optimizer moves float32 deltas that begin at
zero, and after each of its steps a weight is the base's plus its delta, rounded once: a change too small for the type
is not lost but kept in the delta, which is all that is saved.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from paft.delta.dense import save_delta
from paft.model.policy import FrozenPolicy


class FullPolicy(FrozenPolicy):
    """A base whose weights all move; with `reference()` it is the base again. On one device.

    The base must be loaded without paths that take its weights for frozen (`without_frozen`).
    """

    def __init__(self, base: PreTrainedModel) -> None:
        super().__init__(base)
        weights = {name: p for name, p in base.named_parameters() if p.is_floating_point()}
        self.names = list(weights)
        self.start = [p.detach().clone() for p in weights.values()]
        self.deltas = nn.ParameterList(
            nn.Parameter(torch.zeros(p.shape, device=p.device)) for p in weights.values()
        )
        for p, delta in zip(weights.values(), self.deltas, strict=True):
            p.requires_grad_(True).register_post_accumulate_grad_hook(partial(_collect, delta))

    @property
    def weights(self) -> list[nn.Parameter]:
        """Of the model, in the order of the deltas."""
        named = dict(self.base.named_parameters())
        return [named[name] for name in self.names]

    def trainable(self) -> list[nn.Parameter]:
        return list(self.deltas)

    @torch.no_grad()
    def write_back(self) -> None:
        """Let the weights be the base's plus their deltas, after these have moved."""
        for weight, start, delta in zip(self.weights, self.start, self.deltas, strict=True):
            weight.copy_(start.float() + delta)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """The base policy: its own weights, no gradient."""
        weights = self.weights
        moved = [weight.data for weight in weights]
        for weight, start in zip(weights, self.start, strict=True):
            weight.data = start
        with torch.no_grad():
            yield
        for weight, data in zip(weights, moved, strict=True):
            weight.data = data

    def penalty(self) -> Tensor:
        """Sum of |delta| over every weight: float32 scalar, with its gradient."""
        return torch.stack([delta.abs().sum() for delta in self.deltas]).sum()

    def adapted_weights(self) -> list[str]:
        return self.names

    def refuse_untouched(self) -> None:
        """Nothing: what the model never calls keeps the delta 0, which is its own."""

    def save(self, folder: Path, fingerprints: dict[str, str]) -> None:
        """Write the deltas, each sparse where it is, and paft.json with the base, tokenizer and template."""
        save_delta(
            {name: delta.detach() for name, delta in zip(self.names, self.deltas, strict=True)}, folder
        )
        self._save_fingerprints(folder, fingerprints)


def _collect(delta: nn.Parameter, weight: Tensor) -> None:
    """Move a weight's gradient to its delta, in float32."""
    assert weight.grad is not None
    gradient = weight.grad.float()
    delta.grad = gradient if delta.grad is None else delta.grad.add_(gradient)
    weight.grad = None
