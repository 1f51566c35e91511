"""Deltas (task vectors) of LoRA adapters as tensors, and how sparse they are.

A delta is what an adapter adds to one weight, `scaling * B @ A` of shape [out, in]. Everything here is
float32 from the factors: differences of saved bfloat16 checkpoints show the rounding of the file, not the
training.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from paft.delta import adapter as stored_adapter
from paft.delta.delta import Delta, Factors, StoredDelta

SMALL = 1e-5
"""The absolute threshold of the PAFT paper's sparsity."""
WIDEST = 1024
"""Rows or columns, the fewer of them, up to which the singular values of a delta without factors are computed."""
SAMPLE = 2**16
"""Most elements a Gini coefficient is taken over."""
CHUNK = 2**15
"""Elements converted to float64 at a time: they stay in a core's cache, and torch starts no threads."""


class LowRank(NamedTuple):
    """The delta of one linear layer as its factors A [rank, in] and B [out, rank]."""

    A: Tensor
    B: Tensor
    scaling: float

    @property
    def shape(self) -> torch.Size:
        """[out, in]"""
        return torch.Size((self.B.shape[0], self.A.shape[1]))

    def to(self, device: torch.device) -> "LowRank":
        return LowRank(self.A.to(device), self.B.to(device), self.scaling)

    def dense(self) -> Tensor:
        """Float32 [out, in]."""
        return (self.B.float() @ self.A.float()) * self.scaling


def read_adapter(folder: Path, base: Path | None = None) -> dict[str, LowRank | Tensor]:
    """`paft.delta.adapter.read_adapter` in memory: float32 factors, and matrices where there are none."""
    return {name: in_torch(s.load()) for name, s in stored_adapter.read_adapter(folder, base).items()}


def in_torch(delta: Delta) -> LowRank | Tensor:
    """A loaded delta as float32 tensors."""
    if isinstance(delta, Factors):
        return LowRank(torch.from_numpy(delta.A), torch.from_numpy(delta.B), delta.scaling)
    return torch.from_numpy(delta.dense(np.empty(math.prod(delta.shape), np.float32)))


def dense(delta: LowRank | Tensor) -> Tensor:
    """Float32 [out, in]."""
    return delta.dense() if isinstance(delta, LowRank) else delta.float()


def layer_statistics(delta: Tensor | LowRank) -> dict[str, float]:
    """How sparse one delta is, by absolute and by scale-free measures.

    - `share_below_1e-5` of |.| (the paper's), `share_zero` (exact), `share_below_tenth_rms`;
    - `l1`, `l2`, `rms`, summed in float64;
    - `hoyer` = (sqrt(n) - l1/l2) / (sqrt(n) - 1), 0 for equal magnitudes, 1 for one non-zero (Hoyer 2004);
    - `gini` of |.|; above 2**16 elements of an evenly strided sample of at most that many;
    - `effective_rank` = exp(entropy of the normalised singular values) (Roy & Vetterli 2007), exact from a QR
      of the factors where there are factors; left out of a wide delta that has none.

    An all-zero delta is the sparsest there is: every share, `hoyer` and `gini` are 1, `effective_rank` is 0.
    """
    values = dense(delta)
    magnitude = values.abs().flatten()
    n = magnitude.numel()
    l1, l2 = magnitude.sum(dtype=torch.float64).item(), math.sqrt(_squared_norm(values))
    rms = l2 / math.sqrt(n)
    statistics = {
        "numel": n,
        "share_below_1e-5": _share(magnitude < SMALL),
        "share_zero": _share(magnitude == 0),
        "share_below_tenth_rms": _share(magnitude < 0.1 * rms) if rms else 1.0,
        "l1": l1,
        "l2": l2,
        "rms": rms,
        "hoyer": (math.sqrt(n) - l1 / l2) / (math.sqrt(n) - 1) if l2 and n > 1 else 1.0,
        "gini": _gini(magnitude),
    }
    if isinstance(delta, LowRank) or min(delta.shape) <= WIDEST:
        statistics["effective_rank"] = _effective_rank(delta)
    return statistics


def adapter_statistics(
    adapter: Mapping[str, LowRank | Tensor] | Iterable[tuple[str, LowRank | Tensor]],
) -> dict[str, dict[str, Any]]:
    """`layer_statistics` of each layer, their mean over layers, and with every element counting once.

    Returns {"layers": {name: statistics}, "mean_over_layers": {...}, "over_elements": {...}}; one dense delta
    exists at a time.
    """
    each = adapter.items() if isinstance(adapter, Mapping) else adapter
    layers = {name: layer_statistics(delta) for name, delta in each}
    rows = list(layers.values())
    numel, l1 = (sum(row[key] for row in rows) for key in ("numel", "l1"))
    l2 = math.hypot(*(row["l2"] for row in rows))
    shares = [key for key in rows[0] if key.startswith("share_")]
    over_elements = {key: sum(row["numel"] * row[key] for row in rows) / numel for key in shares}
    over_elements |= {"numel": numel, "l1": l1, "l2": l2, "rms": l2 / math.sqrt(numel)}
    return {"layers": layers, "mean_over_layers": _mean_of(rows), "over_elements": over_elements}


def measured(deltas: Mapping[str, StoredDelta]) -> dict[str, Any]:
    """`adapter_statistics` of stored deltas, of which one is in memory at a time."""
    return adapter_statistics((name, in_torch(stored.load())) for name, stored in deltas.items())


def _share(mask: Tensor) -> float:
    return mask.count_nonzero().item() / mask.numel()


def _gini(magnitude: Tensor) -> float:
    # an odd stride meets every column of a matrix whose width is a power of two
    stride = -(-magnitude.numel() // SAMPLE) | 1
    ascending = magnitude[::stride].sort().values.double()
    n, total = ascending.numel(), ascending.sum().item()
    if total == 0:
        return 1.0
    ranks = torch.arange(1, n + 1, dtype=torch.float64)
    return 2 * torch.dot(ranks, ascending).item() / (n * total) - (n + 1) / n


def _effective_rank(delta: Tensor | LowRank) -> float:
    singular = _singular_values(delta) if isinstance(delta, Tensor) else torch.linalg.svdvals(_core(delta))
    if singular.sum() == 0:
        return 0.0
    p = singular / singular.sum()
    return math.exp(torch.special.entr(p).sum().item())


def _singular_values(delta: Tensor) -> Tensor:
    """Float64, by the eigenvalues of D D^T: a quarter of the time; those below 1e-8 of the largest are rounding."""
    matrix = delta.double().reshape(delta.shape[0], -1)
    shorter = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    return torch.linalg.eigvalsh(shorter @ shorter.T).clamp_(min=0).sqrt_()


def _core(delta: LowRank) -> Tensor:
    """A [rank, rank] matrix with the singular values of B @ A: Q_B (R_B R_A^T) Q_A^T."""
    R_B = torch.linalg.qr(delta.B.double()).R
    R_A = torch.linalg.qr(delta.A.double().T).R
    return R_B @ R_A.T


def _squared_norm(delta: Tensor) -> float:
    """Sum of squares in float64, a bounded piece at a time."""
    return sum(torch.dot(x, x).item() for x in (piece.double() for piece in delta.reshape(-1).split(CHUNK)))


def _mean_of(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean of every key over the rows that have it."""
    keys = dict.fromkeys(key for row in rows for key in row if key != "numel")
    columns = {key: [row[key] for row in rows if key in row] for key in keys}
    return {key: sum(values) / len(values) for key, values in columns.items()}
