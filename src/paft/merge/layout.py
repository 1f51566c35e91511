"""Where tensors lie in a safetensors file some of whose types change."""

import json
import math
import struct
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from paft.files.jsonfile import parse, read_object, write_json
from paft.files.safetensors import INDEX, SIZES, Stored

STORED = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""torch's names -> those of safetensors."""


def lay_out(
    path: Path, tensors: Mapping[str, Stored], names: Collection[str], dtype: str | None
) -> tuple[bytes, dict[str, Stored]]:
    """The beginning of the new file, up to its first tensor, and its tensors: those in `names` stored as `dtype`.

    The beginning is the old one, byte for byte, where no type changes.
    """
    old = path.open("rb").read(min((s.begin for s in tensors.values()), default=path.stat().st_size))
    if dtype is None or all(tensors[name].dtype == STORED[dtype] for name in tensors if name in names):
        return old, dict(tensors)
    header, end = parse(old[8:]), 0
    for name, stored in tensors.items():
        kind = STORED[dtype] if name in names else stored.dtype
        begin, end = end, end + math.prod(stored.shape) * SIZES[kind]
        header[name] = header[name] | {"dtype": kind, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    placed = {name: _placed(tensors[name], header[name], start) for name in tensors}
    return struct.pack("<Q", len(text)) + text, placed


def _placed(stored: Stored, entry: Mapping[str, list[int]], start: int) -> Stored:
    begin, end = entry["data_offsets"]
    return replace(stored, dtype=str(entry["dtype"]), begin=start + begin, end=start + end)


def state_dtype(folder: Path, dtype: str, total_size: int) -> None:
    """Let a model folder say so itself: its config.json, and the size in its index."""
    config = read_object(folder / "config.json")
    name = "torch_dtype" if "torch_dtype" in config else "dtype"
    write_json(folder / "config.json", config | {name: dtype})
    if (folder / INDEX).is_file():
        index = read_object(folder / INDEX)
        index["metadata"] = (index.get("metadata") or {}) | {"total_size": total_size}
        write_json(folder / INDEX, index)
