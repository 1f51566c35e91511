"""What is counted of a merge while the rows of its tensors pass by."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from paft.delta.rows import Array
from paft.merge.slerp import Gram
from paft.merge.sparsify import Mask


@dataclass
class Counts:
    """Of one tensor."""

    size: int
    gram: Gram | None
    linear: bool | None
    overlap: float | None = None
    conflicts: int = 0
    shared: int = 0
    moved: int = 0
    rounded_back: int = 0
    squares: float = 0.0

    def add(self, deltas: Sequence[Array], merged: Array, unchanged: Mask | None = None) -> None:
        """Some rows of the deltas and of the merged one; `unchanged` where what is stored is the base's value."""
        if self.gram is not None:
            a, b = deltas[:2]
            self.conflicts += _opposite(a, b)
            self.shared += int(np.count_nonzero((a != 0) & (b != 0)))
        wide = merged.reshape(-1).astype(np.float64)
        self.squares += float(wide @ wide)
        moved = merged != 0
        self.moved += int(np.count_nonzero(moved))
        if unchanged is not None:
            self.rounded_back += int(np.count_nonzero(moved & unchanged))

    def row(self) -> dict[str, Any]:
        row: dict[str, Any] = {}
        if self.gram is not None:
            row = {"cosine": self.gram.cosine, "sign_conflict": self.conflicts / self.size}
            row |= {} if self.overlap is None else {"overlap": self.overlap}
        return row if self.linear is None else row | {"linear": self.linear}


def _opposite(a: Array, b: Array) -> int:
    """At how many positions both are non-zero with opposite signs."""
    return int(np.count_nonzero(((a > 0) & (b < 0)) | ((a < 0) & (b > 0))))


def summary(counts: Mapping[str, Counts]) -> dict[str, Any]:
    """Means over tensors, shares of all elements, the norm of the merged delta, and every tensor."""
    layers = {name: count.row() for name, count in counts.items()}
    rows = list(layers.values())
    keys = dict.fromkeys(key for row in rows for key in row)
    means = {
        f"{key}_share" if key == "linear" else key: fmean(row[key] for row in rows if key in row)
        for key in keys
    }
    moved = sum(count.moved for count in counts.values())
    shared = sum(count.shared for count in counts.values())
    if shared:
        conflicts, size = (sum(getattr(c, name) for c in counts.values()) for name in ("conflicts", "size"))
        means |= {"shared": shared / size, "conflict_of_shared": conflicts / shared}
    return means | {
        "rounded_back": sum(count.rounded_back for count in counts.values()) / moved if moved else 0.0,
        "changed_tensors": len(layers),
        "delta_l2": math.sqrt(sum(count.squares for count in counts.values())),
        "layers": layers,
    }
