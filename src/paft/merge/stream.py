"""Rewrite some tensors of a safetensors checkpoint, a block of rows at a time, into a new folder.

The header is copied as it is, so names, dtypes and offsets stay unless another dtype is asked for, and every tensor
has its place in the new file before any is computed: a few threads read, change and write tensors, or copy what
nothing changes. Memory is what the changes of so many tensors need, whatever the size of the model.
"""

import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from paft.delta.rows import FLOATS, Array, Bits, decode, encode, fits, matrix_shape
from paft.files.jsonfile import read_object
from paft.files.replacing import replacing
from paft.files.safetensors import SIZES, Stored, read_checkpoint
from paft.merge.layout import lay_out, state_dtype

BESIDE = (".json", ".jinja", ".model", ".tiktoken", ".txt", ".py")
"""Suffixes of configuration and tokenizer files; weights in any other format would be the unmerged ones."""
THREADS = min(4, os.cpu_count() or 1)
"""Tensors in work at a time. More would wait for memory and disk, and each holds its deltas."""
BUFFER = 2**22
"""Bytes copied at a time."""
KEPT = 2**25 - 2**14
"""Once it has seen a block of this size freed, glibc keeps smaller ones, up to twice this, for the next allocation;
before, arrays of a block of rows go back to the system, to be cleared page by page when they return."""


@dataclass(frozen=True)
class Weight:
    """A stored tensor that is to be changed, as a matrix whose rows are read when they are asked for."""

    name: str
    stored: Stored
    file: BinaryIO
    new_dtype: str | None = None
    """What it will be stored as, if not as it is."""

    @property
    def dtype(self) -> str:
        """Of the new file."""
        return self.new_dtype or self.stored.dtype

    @property
    def shape(self) -> tuple[int, int]:
        """Of its matrix; see `matrix_shape`."""
        return matrix_shape(self.stored.shape)

    def bits(self, rows: slice) -> Bits:
        """Some rows as they are stored."""
        width = self.shape[1]
        start, stop, _ = rows.indices(self.shape[0])
        row = width * SIZES[self.stored.dtype]
        raw = read_at(self.file, self.stored.begin + start * row, (stop - start) * row)
        return np.frombuffer(raw, FLOATS[self.stored.dtype]).reshape(-1, width)

    def __getitem__(self, rows: slice) -> Array:
        """Some rows in float32."""
        return decode(self.bits(rows), self.stored.dtype)

    def encode(self, values: Array) -> Bits:
        """New rows as they will be stored. Raises `ValueError` for values that would not be finite."""
        if not fits(values, self.dtype):
            raise ValueError(
                f"{self.name} is not finite after the merge in {self.dtype}; look at its deltas and scale"
            )
        return encode(values, self.dtype)


Change = Callable[[Weight], Iterable[Bits]]
"""A weight's new rows as they are stored, block after block. Called from several threads."""


def rewrite(
    base: Path, out: Path, names: Collection[str], change: Change, *, dtype: str | None = None
) -> None:
    """Copy the model folder `base` to `out` with `change` applied to the tensors in `names`, stored as `dtype`: one of
    `paft.merge.layout.STORED`.

    Every other tensor is copied byte for byte. A file appears under its name only when it is whole. Raises
    `ValueError` for a name that the checkpoint does not hold, a damaged file, and whatever `change` raises.
    """
    if out.resolve() == base.resolve():
        raise ValueError(f"the output folder must differ from the base model's, got {out} for both")
    files = read_checkpoint(base)
    refuse_absent(base, names, {name: s for tensors in files.values() for name, s in tensors.items()})
    out.mkdir(parents=True, exist_ok=True)
    total, new_size = sum(path.stat().st_size for path in files), 0
    np.empty(KEPT, np.uint8)
    with (
        tqdm(total=total, unit="B", unit_scale=True, desc="merge", disable=None) as progress,
        # no warnings of overflow: what is not finite is refused when it is stored
        ThreadPoolExecutor(THREADS, initializer=partial(np.seterr, all="ignore")) as pool,
    ):
        for path, tensors in files.items():
            with path.open("rb") as source, replacing(out / path.name) as target:
                begin, placed = lay_out(path, tensors, names, dtype)
                _write_at(target, 0, memoryview(begin))
                new_size += sum(s.end - s.begin for s in placed.values())
                steps = _steps(source, target, tensors, placed, names, change)
                for size in _in_threads(pool, steps):
                    progress.update(size)
    for path in sorted(base.iterdir()):
        if path.is_file() and path.suffix in BESIDE and ".bin.index" not in path.name:
            with path.open("rb") as source, replacing(out / path.name) as target:
                shutil.copyfileobj(source, target)
    if dtype is not None:
        state_dtype(out, dtype, new_size)


def refuse_absent(base: Path, names: Collection[str], held: Mapping[str, Stored]) -> None:
    """Raise `ValueError` for an adapted tensor that is absent, not a number, or overwritten by loading."""
    config = base / "config.json"
    tied = config.is_file() and read_object(config).get("tie_word_embeddings", False)
    for name in names:
        if tied and name.split(".")[-2:-1] == ["lm_head"]:
            raise ValueError(
                f"the adapter changes {name}, but {base} ties it to the input embeddings, "
                "which would change with it; leave lm_head out of target_modules"
            )
        if name not in held:
            raise ValueError(
                f"the adapter changes {name}, which {base} does not hold; "
                f"it holds {', '.join(list(held)[:3])}, ...: was the adapter trained on another model?"
            )
        if held[name].dtype not in FLOATS:
            raise ValueError(
                f"{name} is stored as {held[name].dtype}; a delta can only be added to {', '.join(FLOATS)}"
            )


Step = Callable[[], int]
"""Writes a part of the new file and returns its number of bytes."""


def _steps(
    source: BinaryIO,
    target: BinaryIO,
    tensors: Mapping[str, Stored],
    placed: Mapping[str, Stored],
    names: Collection[str],
    change: Change,
) -> Iterator[Step]:
    """In file order: one for each changed tensor, and one for each stretch of bytes between them.

    `tensors` are those of the source, `placed` where they go.
    """
    size = os.fstat(source.fileno()).st_size
    first = next(iter(tensors), None)
    done, shift = (tensors[first].begin, placed[first].begin - tensors[first].begin) if first else (size, 0)
    for name in (name for name in tensors if name in names):
        stored, new = tensors[name], placed[name]
        yield partial(_copy, source, target, done, stored.begin, shift)
        yield partial(_write, target, Weight(name, stored, source, new.dtype), new.begin, change)
        done, shift = stored.end, new.end - stored.end
    yield partial(_copy, source, target, done, size, shift)


def _in_threads(pool: ThreadPoolExecutor, steps: Iterable[Step]) -> Iterator[int]:
    futures = [pool.submit(step) for step in steps]
    try:
        for future in futures:
            yield future.result()
    finally:
        # after an error nothing may still write when the files are closed
        for future in futures:
            future.cancel()
        wait(futures)


def _write(target: BinaryIO, weight: Weight, begin: int, change: Change) -> int:
    position = begin
    for bits in change(weight):
        _write_at(target, position, bits.data.cast("B"))
        position += bits.nbytes
    return weight.stored.end - weight.stored.begin


def _copy(source: BinaryIO, target: BinaryIO, begin: int, end: int, shift: int) -> int:
    for position in range(begin, end, BUFFER):
        _write_at(
            target, position + shift, memoryview(read_at(source, position, min(BUFFER, end - position)))
        )
    return end - begin


def read_at(file: BinaryIO, position: int, size: int) -> bytes:
    """Exactly `size` bytes. Raises `ValueError` where the file ends before them."""
    raw = os.pread(file.fileno(), size, position)
    if len(raw) < size:
        raise ValueError(f"{file.name} was cut short while it was read; download or save it again")
    return raw


def _write_at(file: BinaryIO, position: int, data: memoryview) -> None:
    while data:
        written = os.pwrite(file.fileno(), data, position)
        position, data = position + written, data[written:]
