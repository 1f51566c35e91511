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

from paft.delta.base import BaseTensors
from paft.delta.rows import FLOATS, Array
from paft.delta.settings import difference_of_settings
from paft.delta.stored import StoredTensor
from paft.files.jsonfile import read_object

CACHED = re.compile(r"models--([^/]+?)--([^/]+?)(/|$)")
"""In a path of the Hugging Face cache: owner and name of the repository."""
SEEN = 1024
"""About how many values of a tensor are compared; other weights differ nearly everywhere."""
CLOSE = 2.0**-7
"""Relative difference of one model's values stored in bfloat16 and in float32."""


def refuse_other_base(base: Path, adapters: Mapping[str, Path]) -> None:
    """Raise `ValueError` naming the difference if an adapter was trained on another model than `base`."""
    for branch, folder in adapters.items():
        name, told = _stated(folder)
        if wrong := _difference(base, name, told) or _other_name(base, name):
            raise ValueError(
                f"the {branch} adapter {folder} was trained on {name or 'another model'}, not on {base}: {wrong}. "
                "Give the base it was trained on; or add --same-base if you know that this is the one"
            )


def base_by_another_name(base: Path, branch: str, folder: Path) -> str | None:
    """A sentence where an adapter names its base otherwise, and nothing on this disk says that it is another one.

    Raises `ValueError` where the models themselves differ.
    """
    name, told = _stated(folder)
    if wrong := _difference(base, name, told):
        raise ValueError(
            f"the {branch} adapter {folder} was trained on {name or 'another model'}, not on {base}: {wrong}. "
            "Give the base it was trained on"
        )
    if wrong := _other_name(base, name):
        return f"the {branch} adapter {folder} says that it was trained on {name}, {wrong}: taken to be the same model"
    return None


def _stated(folder: Path) -> tuple[str | None, dict[str, Any]]:
    """What an adapter says of its base: the name, and all of its settings."""
    told = _settings(folder / "adapter_config.json")
    name = told.get("base_model_name_or_path") or None
    return str(name) if name else None, told


def _difference(base: Path, name: str | None, told: Mapping[str, Any]) -> str | None:
    """In what the models themselves differ, as far as they are known."""
    if name and (Path(name) / "config.json").is_file():
        return difference_of_models(base, Path(name))
    mapping = told.get("auto_mapping")
    trained = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    given = _settings(base / "config.json").get("architectures") or []
    if trained and given and trained not in given:
        return f"that is a {trained}, this is a {', '.join(map(str, given))}"
    return None


def _other_name(base: Path, name: str | None) -> str | None:
    known = list(dict.fromkeys(names_of(base)))
    seen = name is None or (Path(name) / "config.json").is_file()
    return (
        None
        if seen or _short(str(name)) in map(_short, known)
        else f"the base is known as {', '.join(known)}"
    )


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
    if differing := difference_of_settings(a, b):
        return differing
    here, there = BaseTensors.of(a).tensors, BaseTensors.of(b).tensors
    if apart := sorted(here.keys() ^ there.keys()):
        where = "here" if apart[0] in here else "there"
        return f"only the model {where} holds {apart[0]}"
    for name, tensor in here.items():
        other = there[name]
        if tensor.stored.shape != other.stored.shape:
            return f"{name} is {list(tensor.stored.shape)} here and {list(other.stored.shape)} there"
        if not np.allclose(_some(tensor), _some(other), rtol=CLOSE):
            return f"{name} has other values there"
    return None


def _some(tensor: StoredTensor) -> Array:
    """The first rows of a tensor; none of one that is not stored as floats."""
    if tensor.stored.dtype not in FLOATS:
        return np.zeros(0, np.float32)
    return tensor[: max(1, SEEN // max(1, tensor.shape[1]))]


def _settings(path: Path) -> dict[str, Any]:
    return read_object(path) if path.is_file() else {}
