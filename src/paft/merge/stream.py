"""Rewrite some tensors of a safetensors checkpoint, one at a time, into a new folder.

A file is an 8-byte length, a JSON header and the tensors' bytes. The header is copied as it is, so names,
dtypes and offsets stay; the bytes follow in file order, changed tensors among untouched ones. Memory is the
largest changed tensor and a copy buffer, whatever the size of the model.
"""

import json
import math
import os
import shutil
import struct
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from tqdm import tqdm

Change = Callable[[str, Tensor], Tensor]
"""(name, stored weight in float32) -> new weight in float32; must not write into its argument."""

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
}
CHANGEABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
BESIDE = (".json", ".jinja", ".model", ".tiktoken", ".txt", ".py")
"""Suffixes of configuration and tokenizer files; weights in any other format would be the unmerged ones."""
MAX_HEADER = 100_000_000
"""Bytes; the limit of the safetensors library."""
BUFFER = 2**24
"""Bytes copied at a time."""


@dataclass(frozen=True)
class Stored:
    """One tensor of a file: `begin` and `end` count bytes from the start of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def read_checkpoint(folder: Path) -> dict[Path, dict[str, Stored]]:
    """Every weight file of a Hugging Face folder with its tensors in file order.

    Raises `ValueError` for a folder without safetensors weights, a missing shard, or a damaged header.
    """
    if (folder / SINGLE).is_file():
        return {folder / SINGLE: read_header(folder / SINGLE)}
    if not (folder / INDEX).is_file():
        raise ValueError(
            f"{folder} holds neither {SINGLE} nor {INDEX}; save the model with safetensors weights"
        )
    weight_map: dict[str, str] = json.loads((folder / INDEX).read_text())["weight_map"]
    files = {folder / name: read_header(folder / name) for name in sorted(set(weight_map.values()))}
    for name, file in weight_map.items():
        if name not in files[folder / file]:
            raise ValueError(
                f"{folder / INDEX} places {name} in {file}, which does not hold it; download it again"
            )
    return files


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file in file order. Raises `ValueError` unless they fill it exactly."""
    if not path.is_file():
        raise ValueError(f"{path} is missing; download or save the checkpoint again")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = _data_start(path, file, size)
        file.seek(8)
        try:
            header = json.loads(file.read(start - 8))
            tensors = {n: _stored(n, e, start) for n, e in header.items() if n != "__metadata__"}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} has a damaged safetensors header: {error}") from error
    tensors = dict(sorted(tensors.items(), key=lambda item: item[1].begin))
    end = start
    for name, stored in tensors.items():
        if stored.begin != end:
            raise ValueError(f"{path} is damaged: {name} begins at byte {stored.begin}, expected {end}")
        end = stored.end
    if end != size:
        raise ValueError(f"{path} is damaged: its tensors end at byte {end}, the file at {size}")
    return tensors


def _data_start(path: Path, file: BinaryIO, size: int) -> int:
    length = struct.unpack("<Q", file.read(8))[0] if size >= 8 else size
    if 8 + length > size or length > MAX_HEADER:
        raise ValueError(f"{path} is no safetensors file: a header of {length} bytes in a file of {size}")
    return 8 + int(length)


def _stored(name: str, entry: Mapping[str, Any], start: int) -> Stored:
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in DTYPES:
        raise ValueError(f"{name} has dtype {dtype}, known are {', '.join(DTYPES)}")
    begin, end = offsets
    stored = Stored(DTYPES[dtype], tuple(shape), start + begin, start + end)
    wanted = math.prod(stored.shape) * stored.dtype.itemsize
    if end - begin != wanted:
        raise ValueError(f"{name} spans {end - begin} bytes, {dtype} {shape} takes {wanted}")
    return stored


def rewrite(base: Path, out: Path, names: Collection[str], change: Change) -> None:
    """Copy the model folder `base` to `out` with `change` applied to the tensors in `names`.

    Those are computed in float32 and cast once to the stored dtype; everything else is copied byte for byte.
    A file appears under its name only when it is whole. Raises `ValueError` for a name that the checkpoint
    does not hold, a damaged file, and a result that is not finite.
    """
    if out.resolve() == base.resolve():
        raise ValueError(f"the output folder must differ from the base model's, got {out} for both")
    files = read_checkpoint(base)
    refuse_absent(base, names, [name for tensors in files.values() for name in tensors])
    out.mkdir(parents=True, exist_ok=True)
    total = sum(path.stat().st_size for path in files)
    with tqdm(total=total, unit="B", unit_scale=True, desc="merge", disable=None) as progress:
        for path, tensors in files.items():
            with path.open("rb") as source, replacing(out / path.name) as target:
                for size in _steps(source, target, tensors, names, change):
                    progress.update(size)
    for path in sorted(base.iterdir()):
        if path.is_file() and path.suffix in BESIDE and ".bin.index" not in path.name:
            with path.open("rb") as source, replacing(out / path.name) as target:
                shutil.copyfileobj(source, target)


def refuse_absent(base: Path, names: Collection[str], held: Collection[str]) -> None:
    """Raise `ValueError` for an adapted tensor that the checkpoint lacks, or that loading would overwrite."""
    config = base / "config.json"
    tied = config.is_file() and json.loads(config.read_text()).get("tie_word_embeddings", False)
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


def _steps(
    source: BinaryIO, target: BinaryIO, tensors: Mapping[str, Stored], names: Collection[str], change: Change
) -> Iterator[int]:
    """Write `target` in file order, yielding the number of bytes of each step."""
    size = os.fstat(source.fileno()).st_size
    yield from _copy(source, target, min((stored.begin for stored in tensors.values()), default=size))
    for name, stored in tensors.items():
        size = stored.end - stored.begin
        if name in names:
            target.write(_changed(source, name, stored, change))
            yield size
        else:
            yield from _copy(source, target, size)


def _changed(source: BinaryIO, name: str, stored: Stored, change: Change) -> memoryview:
    """The new bytes of the tensor at the position of `source`."""
    if stored.dtype not in CHANGEABLE:
        raise ValueError(f"{name} is stored as {stored.dtype}; a delta can only be added to {CHANGEABLE}")
    raw = bytearray(source.read(stored.end - stored.begin))
    weight = torch.frombuffer(raw, dtype=stored.dtype).view(stored.shape)
    result = change(name, weight.float()).to(stored.dtype)
    if not result.isfinite().all():
        raise ValueError(
            f"{name} is not finite after the merge in {stored.dtype}; look at its deltas and scale"
        )
    return result.reshape(-1).view(torch.uint8).numpy().data


def _copy(source: BinaryIO, target: BinaryIO, size: int) -> Iterator[int]:
    while size:
        piece = source.read(min(size, BUFFER))
        if not piece:
            raise ValueError(f"{source.name} was cut short while it was read; download or save it again")
        target.write(piece)
        size -= len(piece)
        yield len(piece)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` once it is whole, and vanishes on an error."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
