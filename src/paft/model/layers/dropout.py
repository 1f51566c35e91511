"""LoRA's dropout with a mask that depends on (seed, step, row, layer) and on nothing else.

A mask drawn from a running generator depends on how a global batch is cut into micro-batches and spread over
devices, and so would the update. Here every row of the global batch has a stream of its own in every layer and
step; a second forward pass of the same rows, as gradient checkpointing makes one, draws the same.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Rows:
    """Which rows the policy is forwarding, and where their tokens lie: what every `RowDropout` of it reads.

    A row's stream covers `length` tokens; in a preference pair those of its shared-prompt layout, whichever layout
    is forwarded (`paft.forward.pairs`).
    """

    def __init__(self, seed: int) -> None:
        self.seed, self.step = seed, 0
        self.places: Sequence[int] | None = None
        self.lengths: Sequence[int] = ()

    def begin(self, step: int, places: Sequence[int], lengths: Sequence[int]) -> None:
        """The next micro-batch: the optimizer step, each row's place in the global batch and its tokens."""
        self.step, self.places, self.lengths = step, places, lengths

    def lay_out(self, columns_RT: Tensor, real_N: Tensor | None = None, *, row: int | None = None) -> None:
        """What is forwarded next: the place of every token in its row's stream.

        R may be a multiple of the rows, which then follow each other in turn. With `real_N` only those of the R T
        tokens are, end to end; with `row` only that one of the R rows.
        """
        if self.places is None:
            lengths = [columns_RT.shape[1]] * len(columns_RT)
            self.begin(self.step, range(len(columns_RT)), lengths)
        starts = torch.tensor([0, *self.lengths[:-1]], device=columns_RT.device).cumsum(0)
        rows = torch.arange(len(columns_RT)) if row is None else torch.tensor([row])
        places_RT = columns_RT + starts[rows.to(starts.device) % len(starts)][:, None]
        last = sum(self.lengths) - 1
        self.tokens = places_RT.clamp(max=last) if real_N is None else places_RT.flatten()[real_N]

    def keep(self, layer: str, features: int, p: float) -> Tensor:
        """Bool [tokens laid out, features], each false with probability `p`."""
        device = self.tokens.device
        assert self.places is not None, "lay_out has run"
        drawn = []
        for place, length in zip(self.places, self.lengths, strict=True):
            stream = hashlib.blake2b(f"{self.seed} {self.step} {place} {layer}".encode(), digest_size=7)
            generator = torch.Generator(device).manual_seed(int.from_bytes(stream.digest()))
            drawn.append(torch.rand(length, features, generator=generator, device=device) >= p)
        return torch.cat(drawn)[self.tokens.flatten()]


class RowDropout(nn.Module):
    """Zeroes each input with probability `p` while training and scales the others by 1 / (1 - p)."""

    def __init__(self, p: float, layer: str, rows: Rows) -> None:
        super().__init__()
        self.p, self.layer, self.rows = p, layer, rows

    def forward(self, x: Tensor) -> Tensor:
        keep = self.keep(x)
        return x if keep is None else x * keep.to(x.dtype).mul_(1 / (1 - self.p)).view(x.shape)

    def keep(self, x: Tensor) -> Tensor | None:
        """Which inputs stay, bool [tokens, features]; None where all do. Raises `ValueError` for another layout."""
        if not self.training:
            return None
        if x[..., 0].numel() != self.rows.tokens.numel():
            raise ValueError(
                f"lora.dropout={self.p:g} cannot be used on {self.layer}, which does not see each token of a row once; "
                "leave it out of lora.target_modules, or set lora.dropout=0"
            )
        return self.rows.keep(self.layer, x.shape[-1], self.p)
