"""The delta of full fine-tuning on disk: one safetensors file, each tensor as values alone where it is mostly zeros.

`<name>` is a whole tensor in float32. Of a sparse one there are `<name>.values`, float32, and `<name>.indices`, int64
places in reading order; its shape stands in delta.json.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from paft.delta.delta import Dense
from paft.delta.rows import matrix_shape
from paft.delta.stored import StoredDifference, StoredTensor
from paft.files.jsonfile import read_object, write_json
from paft.files.safetensors import Stored, read_header

if TYPE_CHECKING:
    from torch import Tensor

FILE, SHAPES = "delta.safetensors", "delta.json"
SPARSE = 1 / 3
"""Share of values that are not zero up to which places and values take less than the whole tensor."""


@dataclass(frozen=True)
class StoredSparse:
    """A delta of which only the values that are not zero are in the file."""

    path: Path
    values: Stored
    indices: Stored
    shape: tuple[int, int]
    scaling: float = 1.0

    def load(self) -> Dense:
        whole = np.zeros(math.prod(self.shape), np.float32)
        places = np.fromfile(self.path, np.int64, math.prod(self.indices.shape), offset=self.indices.begin)
        whole[places] = StoredTensor(self.path, self.values)[:].reshape(-1)
        return Dense(whole.reshape(self.shape), self.scaling)

    def scaled(self, factor: float) -> Self:
        return type(self)(self.path, self.values, self.indices, self.shape, self.scaling * factor)


def is_delta(folder: Path) -> bool:
    return (folder / FILE).is_file()


def read_delta(folder: Path) -> dict[str, StoredSparse | StoredDifference]:
    """Tensor of the base -> its delta; one that did not change is left out. Raises `ValueError` for other files."""
    path = folder / FILE
    stored, deltas = read_header(path), dict[str, StoredSparse | StoredDifference]()
    for name, shape in read_object(folder / SHAPES).items():
        if name in stored:
            deltas[name] = StoredDifference(StoredTensor(path, stored[name]))
        elif f"{name}.values" in stored and f"{name}.indices" in stored:
            places = stored[f"{name}.values"], stored[f"{name}.indices"]
            deltas[name] = StoredSparse(path, *places, matrix_shape(tuple(shape)))
        else:
            raise ValueError(f"{path} does not hold {name}, which {folder / SHAPES} names; train it again")
    return deltas


def save_delta(deltas: "Mapping[str, Tensor]", folder: Path) -> None:
    """Write what is not zero of the deltas to `folder`."""
    from safetensors.torch import save_file

    tensors: dict[str, Any] = {}
    shapes = {name: list(delta.shape) for name, delta in deltas.items() if bool((delta != 0).any())}
    for name in shapes:
        flat = deltas[name].reshape(-1).cpu()
        places = flat.nonzero().reshape(-1)
        if len(places) > SPARSE * flat.numel():
            tensors[name] = deltas[name].cpu().contiguous()
        else:
            tensors |= {f"{name}.values": flat[places], f"{name}.indices": places}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / FILE)
    write_json(folder / SHAPES, shapes)
