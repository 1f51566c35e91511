"""Whether adapters were trained on the base they are to be merged into.

Shapes and names of tensors say little: models of one size fit each other. So what an adapter says of its base is held
against the base, the surest first:

1. where its `base_model_name_or_path` is a model folder on this disk, the two models themselves: architecture, names
   and shapes of the tensors, and some values of each, so that a copy or a moved folder is the same model;
2. the class of its base (`auto_mapping`), where peft has written one, against the architectures of config.json;
3. else the names: the repository of a Hugging Face cache, `_name_or_path` of config.json, the folder's own. A path
   of another machine counts by its last part.

An adapter that names no base is held to be of this one. Nothing here needs torch.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from paft.delta.rows import FLOATS, Array, decode
from paft.files.jsonfile import read_object
from paft.files.safetensors import SIZES, Stored, read_checkpoint
from paft.merge.stream import read_at

CACHED = re.compile(r"models--([^/]+?)--([^/]+?)(/|$)")
"""In a path of the Hugging Face cache: owner and name of the repository."""
SEEN = 1024
"""Values of a tensor that are compared; other weights differ nearly everywhere."""
CLOSE = 2.0**-7
"""Relative difference of one model's values stored in bfloat16 and in float32."""


INCIDENTAL = {
    "_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "bos_token_id", "eos_token_id",
    "pad_token_id", "quantization_config", "auto_map", "attn_implementation", "_attn_implementation",
}  # fmt: skip
"""What config.json of one model may say otherwise in another copy of it."""


def refuse_other_base(base: Path, adapters: Mapping[str, Path]) -> None:
    """Raise `ValueError` naming the difference if an adapter was trained on another model than `base`."""
    for branch, folder in adapters.items():
        told = _settings(folder / "adapter_config.json")
        name = told.get("base_model_name_or_path") or None
        if wrong := _difference(base, str(name) if name else None, told):
            raise ValueError(
                f"the {branch} adapter {folder} was trained on {name or 'another model'}, not on {base}: {wrong}. "
                "Give the base it was trained on; or add --same-base if you know that this is the one"
            )


def _difference(base: Path, name: str | None, told: Mapping[str, Any]) -> str | None:
    if name and (Path(name) / "config.json").is_file():
        return difference_of_models(base, Path(name))
    mapping = told.get("auto_mapping")
    trained = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    given = _settings(base / "config.json").get("architectures") or []
    if trained and given and trained not in given:
        return f"that is a {trained}, this is a {', '.join(map(str, given))}"
    known = list(dict.fromkeys(names_of(base)))
    if name is None or _short(name) in map(_short, known):
        return None
    return f"the base is known as {', '.join(known)}"


def names_of(base: Path) -> Iterator[str]:
    """The names a base model may have been given: of its repository, in its config.json, of its folder."""
    for path in (base, base.resolve()):
        if cached := CACHED.search(path.as_posix()):
            yield f"{cached[1]}/{cached[2]}"
        else:
            yield path.name
    if told := _settings(base / "config.json").get("_name_or_path"):
        yield str(told)


def _short(name: str) -> str:
    """What is left of a name on any machine."""
    cached = CACHED.search(name.replace("\\", "/"))
    return (cached[2] if cached else name.replace("\\", "/").rstrip("/").rpartition("/")[2]).lower()


def difference_of_models(a: Path, b: Path) -> str | None:
    """In what two model folders differ, in words; None for one model, whatever its folder, shards and float type."""
    if a.resolve() == b.resolve():
        return None
    ours, theirs = _settings(a / "config.json"), _settings(b / "config.json")
    for key in ("model_type", "architectures", *sorted(ours.keys() & theirs.keys())):
        first, second = ours.get(key), theirs.get(key)
        if first != second and key not in INCIDENTAL:
            return f"config.json says {key}={first!r:.100} here and {second!r:.100} there"
    here, there = _tensors(a), _tensors(b)
    if apart := sorted(here.keys() ^ there.keys()):
        where = "here" if apart[0] in here else "there"
        return f"only the model {where} holds {apart[0]}"
    for name, (path, stored) in here.items():
        other_path, other = there[name]
        if stored.shape != other.shape:
            return f"{name} is {list(stored.shape)} here and {list(other.shape)} there"
        if not np.allclose(_some(path, stored), _some(other_path, other), rtol=CLOSE):
            return f"{name} has other values there"
    return None


def _tensors(folder: Path) -> dict[str, tuple[Path, Stored]]:
    return {
        name: (path, s) for path, tensors in read_checkpoint(folder).items() for name, s in tensors.items()
    }


def _some(path: Path, stored: Stored) -> Array:
    """The first values of a tensor; none of one that is not stored as floats."""
    if stored.dtype not in FLOATS:
        return np.zeros(0, np.float32)
    size = min(stored.end - stored.begin, SEEN * SIZES[stored.dtype])
    with path.open("rb") as file:
        raw = read_at(file, stored.begin, size)
    return decode(np.frombuffer(raw, FLOATS[stored.dtype]), stored.dtype)


def _settings(path: Path) -> dict[str, Any]:
    return read_object(path) if path.is_file() else {}
