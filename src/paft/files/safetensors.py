"""The headers of safetensors files: which tensors a checkpoint holds and where. Without torch.

A file is an 8-byte length, a JSON header and the tensors' bytes.
"""

import json
import math
import os
import re
import shlex
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from paft.files.jsonfile import parse, read_object

SIZES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}
"""Bytes of an element."""
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_HEADER = 100_000_000
"""Bytes; the limit of the safetensors library."""
MAX_DIMENSIONS = 64
"""The limit of numpy."""


@dataclass(frozen=True)
class Stored:
    """One tensor of a file: `begin` and `end` count bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_checkpoint(folder: Path) -> dict[Path, dict[str, Stored]]:
    """Every weight file of a Hugging Face folder with its tensors in file order.

    Raises `ValueError` for a folder without safetensors weights, a missing shard or one outside the folder, or a
    damaged header.
    """
    if (folder / SINGLE).is_file():
        return {folder / SINGLE: read_header(folder / SINGLE)}
    if not (folder / INDEX).is_file():
        raise ValueError(f"{folder} holds neither {SINGLE} nor {INDEX}; {as_safetensors(folder)}")
    weight_map = _weight_map(folder / INDEX)
    files = {folder / name: read_header(folder / name) for name in sorted(set(weight_map.values()))}
    for name, file in weight_map.items():
        if name not in files[folder / file]:
            raise ValueError(
                f"{folder / INDEX} places {name} in {file}, which does not hold it; download it again"
            )
    return files


def as_safetensors(folder: Path) -> str:
    """What makes safetensors of a model: the command where its weights are pickled, which may run code when read."""
    if not (os.path.isdir(folder) and any(folder.glob("pytorch_model*.bin"))):
        return "save the model with safetensors weights"
    code = (
        "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; "
        f"a, b = {json.dumps(str(folder))}, {json.dumps(f'{folder}-safetensors')}; "
        'M.from_pretrained(a, dtype="auto").save_pretrained(b); T.from_pretrained(a).save_pretrained(b)'
    )
    return (
        "its weights are pickles (pytorch_model.bin), which are not read, as they may run code. If you trust who made "
        f"them, this makes a folder of safetensors: python -c {shlex.quote(code)}"
    )


def _weight_map(path: Path) -> dict[str, str]:
    """Tensor name -> the name of its file, which is in the same folder."""
    weight_map = read_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{path} must hold a weight_map of tensors and their files; download it again")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not re.fullmatch(r"[\w.-]+\.safetensors", file):
            raise ValueError(
                f"{path} places {name!r:.100} in {file!r:.100}, which is no safetensors file of its own folder; "
                "do not use this model, or download it again from a source you trust"
            )
    return weight_map


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file in file order. Raises `ValueError` unless they fill it exactly."""
    if not path.is_file():
        raise ValueError(f"{path} is missing; download or save the checkpoint again")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = _data_start(path, file, size)
        file.seek(8)
        try:
            header = parse(file.read(start - 8))
            tensors = {n: _stored(n, e, start) for n, e in header.items() if n != "__metadata__"}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} has a damaged safetensors header: {error!s:.300}; save it again"
            ) from error
    tensors = dict(sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)))
    end = start
    for name, stored in tensors.items():
        if stored.begin != end:
            raise ValueError(f"{path} is damaged: {name:.100} begins at byte {stored.begin}, expected {end}")
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
    name.encode()  # half a surrogate pair is no name, and could not be printed
    if dtype not in SIZES:
        raise ValueError(f"{name} has dtype {dtype}, known are {', '.join(SIZES)}")
    begin, end = offsets
    if len(shape) > MAX_DIMENSIONS or any(type(n) is not int or n < 0 for n in (*shape, begin, end)):
        raise ValueError(f"{name} has shape {shape} and data_offsets {offsets}: not lists of natural numbers")
    expected = math.prod(shape) * SIZES[dtype]
    if end - begin != expected:
        raise ValueError(f"{name} spans {end - begin} bytes, {dtype} {shape} takes {expected}")
    return Stored(dtype, tuple(shape), start + begin, start + end)
