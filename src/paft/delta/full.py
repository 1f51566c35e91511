"""The delta of full fine-tuning on disk: one safetensors file, float32. Without torch but to write it.

A tensor of the base has its delta under its name. Where zeros make it smaller it is a sparse matrix in place of that,
as torch and scipy store one by rows (CSR): `<name>.crow_indices` int64, where each row begins among the values;
`<name>.col_indices` int32; `<name>.values` float32; and `<name>.shape` int64, (rows, columns). A tensor of any shape
counts as a matrix (`paft.delta.rows.matrix_shape`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from paft.delta.base import BaseTensors
from paft.delta.delta import Dense
from paft.delta.rows import Array, matrix_shape
from paft.delta.stored import StoredDifference, StoredTensor
from paft.files.safetensors import Stored, read_header

if TYPE_CHECKING:
    from torch import Tensor

FOLDER, FILE = "delta", "delta.safetensors"
"""Of a branch's stage; in it."""
PARTS = {"crow_indices": "I64", "col_indices": "I32", "values": "F32", "shape": "I64"}
"""Of a sparse matrix, with their types."""
TYPES = {"I64": np.int64, "I32": np.int32, "F32": np.float32}


def trained_folder(stage: Path) -> Path:
    """What the stage of a branch has trained: its `delta`, of full fine-tuning, else its `adapter`."""
    return stage / FOLDER if (stage / FOLDER).is_dir() else stage / "adapter"


def is_full_delta(folder: Path) -> bool:
    return (folder / FILE).is_file()


@dataclass(frozen=True)
class StoredSparse:
    """scaling * a sparse matrix of a file, read some rows at a time."""

    path: Path
    parts: Mapping[str, Stored]
    scaling: float = 1.0

    @cached_property
    def shape(self) -> tuple[int, int]:
        rows, columns = self._read("shape", 0, 2).tolist()
        return rows, columns

    def load(self) -> Dense:
        return Dense(self, self.scaling)

    def scaled(self, factor: float) -> Self:
        return replace(self, scaling=self.scaling * factor)

    def __getitem__(self, rows: slice) -> Array:
        """Some rows, before scaling. Raises `ValueError` for places outside of the matrix."""
        start, stop, _ = rows.indices(self.shape[0])
        begins = self._read("crow_indices", start, stop + 1)
        columns = self._read("col_indices", int(begins[0]), int(begins[-1]))
        block = np.zeros((stop - start, self.shape[1]), np.float32)
        counts = np.diff(begins)
        if (counts < 0).any() or (columns < 0).any() or (columns >= self.shape[1]).any():
            raise ValueError(f"{self.path} is damaged: it has values outside of its matrices; train it again")
        values = self._read("values", int(begins[0]), int(begins[-1]))
        block[np.repeat(np.arange(stop - start), counts), columns] = values
        return block

    def _read(self, part: str, start: int, stop: int) -> NDArray[Any]:
        stored, kind = self.parts[part], TYPES[PARTS[part]]
        if not 0 <= start <= stop <= stored.shape[0]:
            raise ValueError(f"{self.path} is damaged: its {part} are too few; train it again")
        offset = stored.begin + start * np.dtype(kind).itemsize
        return np.fromfile(self.path, kind, stop - start, offset=offset)


def read_full_delta(
    folder: Path, base: BaseTensors | None = None
) -> dict[str, StoredSparse | StoredDifference]:
    """Tensor -> its delta, zeros too, from the header of the file alone; under the base's names where there is one.

    Raises `ValueError` for other files, and for a delta that the base has no tensor of that shape for.
    """
    path = folder / FILE
    stored = read_header(path)
    sparse = [name.removesuffix(".crow_indices") for name in stored if name.endswith(".crow_indices")]
    deltas: dict[str, StoredSparse | StoredDifference] = {n: _sparse(path, n, stored) for n in sparse}
    inside = {f"{name}.{part}" for name in sparse for part in PARTS}
    deltas |= {n: _whole(path, n, of) for n, of in stored.items() if n not in inside}
    ordered = sorted(deltas.items())
    return {name if base is None else _known(base, folder, name, delta): delta for name, delta in ordered}


def _sparse(path: Path, name: str, stored: Mapping[str, Stored]) -> StoredSparse:
    parts = {part: stored.get(f"{name}.{part}") for part in PARTS}
    for part, kind in PARTS.items():
        of = parts[part]
        if of is None or of.dtype != kind or len(of.shape) != 1:
            raise ValueError(f"{path} holds no {name:.200}.{part} of {kind} in one dimension; train it again")
    return StoredSparse(path, {part: of for part, of in parts.items() if of is not None})


def _whole(path: Path, name: str, stored: Stored) -> StoredDifference:
    if stored.dtype != "F32":
        raise ValueError(f"{path} holds {name:.200} as {stored.dtype}, and a delta is F32; train it again")
    return StoredDifference(StoredTensor(path, stored))


def _known(base: BaseTensors, folder: Path, name: str, delta: StoredSparse | StoredDifference) -> str:
    known = base.name_of(name)
    if known is None:
        raise base.absent(folder, name)
    base.refuse_unfit(folder, known, delta.shape)
    return known


def save_full_delta(deltas: "Mapping[str, Tensor]", folder: Path) -> None:
    """Write float32 deltas to `folder`, each whole or sparse, whichever is smaller."""
    from safetensors.torch import save_file

    tensors = {name: part for whole, delta in deltas.items() for name, part in _stored(whole, delta)}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / FILE)


def _stored(name: str, delta: "Tensor") -> "list[tuple[str, Tensor]]":
    import torch

    matrix = delta.reshape(matrix_shape(delta.shape))
    rows, columns = matrix.nonzero(as_tuple=True)
    if 8 * (len(columns) + len(matrix) + 3) >= 4 * matrix.numel():
        return [(name, delta.contiguous())]
    counts = torch.bincount(rows, minlength=len(matrix))
    parts = {
        "crow_indices": torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
        "col_indices": columns.int(),
        "values": matrix[rows, columns],
        "shape": torch.tensor(matrix.shape),
    }
    return [(f"{name}.{part}", tensor) for part, tensor in parts.items()]
