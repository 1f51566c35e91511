"""What the tensors of an adapter file are, by their names: factors of modules, and weights saved as they are.

peft names them `base_model.model.<module>.lora_A.weight`; other tools leave the adapter's name in (`lora_A.default`),
or what torch wraps modules in.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from paft.delta.base import plain_name
from paft.files.safetensors import Stored, read_header

PREFIX = "base_model.model."
FACTOR = re.compile(
    r"(?P<module>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B|magnitude_vector)"
    r"(?:\.(?!weight$|bias$)(?P<adapter>[^.]+))?(?:\.(?P<kind>weight|bias))?"
)
TOKENS = re.compile(r"(?P<module>.+)\.token_adapter\.trainable_tokens_delta(\.[^.]+)?")
WRAPPED = re.compile(r"\.(base_layer|modules_to_save(\.[^.]+)?)(?=\.(weight|bias)$)")
"""Where peft puts the layer that an adapter is on, and the copy of one that was trained whole."""


@dataclass
class AdapterFile:
    """The tensors of one file, by what they do. Module and tensor names are without peft's prefix."""

    path: Path
    modules: dict[str, dict[str, Stored]] = field(default_factory=dict)
    """Module -> part of it ("A", "B", "embedding_A", "embedding_B", "magnitude_vector", "B.bias") -> its tensor."""
    saved: dict[str, Stored] = field(default_factory=dict)
    """Tensors that take the place of the base's."""
    tokens: dict[str, Stored] = field(default_factory=dict)
    """Module -> rows that take the place of those of its weight which `trainable_token_indices` names."""


def read_adapter_file(folder: Path) -> AdapterFile:
    """The header of a folder's adapter_model.safetensors, taken apart.

    Raises `ValueError` naming the folder for a missing or damaged file, a pickle, or several adapters in one file.
    """
    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        raise ValueError(f"{folder} holds no adapter_model.safetensors{_instead(folder)}")
    try:
        tensors = read_header(path)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    return _sorted_out(path, tensors)


def _sorted_out(path: Path, tensors: Mapping[str, Stored]) -> AdapterFile:
    names = {key: plain_name(key).removeprefix(PREFIX) for key in tensors}
    matches = {key: FACTOR.fullmatch(name) for key, name in names.items()}
    if len(adapters := {m["adapter"] for m in matches.values() if m} - {None}) > 1:
        raise ValueError(
            f"{path} holds several adapters ({_some(adapters)}); save the one to be merged into a folder of its own"
        )
    file = AdapterFile(path)
    for key, stored in tensors.items():
        if match := matches[key]:
            part = match["part"] + ".bias" * (match["kind"] == "bias")
            _put(file.modules.setdefault(match["module"], {}), part, stored, key, path)
        elif match := TOKENS.fullmatch(names[key]):
            _put(file.tokens, match["module"], stored, key, path)
        else:
            _put(file.saved, WRAPPED.sub("", names[key]), stored, key, path)
    return file


def _put(place: dict[str, Stored], name: str, stored: Stored, key: str, path: Path) -> None:
    if name in place:
        raise ValueError(f"{path} holds {key:.200} under two names; save the adapter again")
    place[name] = stored


def _some(names: Iterable[str]) -> str:
    return f"{', '.join(sorted(names)[:3]):.300}"


def _instead(folder: Path) -> str:
    """What to do about a folder whose weights are in another format."""
    pickles = [name for name in ("adapter_model.bin", "pytorch_model.bin") if (folder / name).exists()]
    if not pickles:
        return "; save it with peft's save_pretrained(..., safe_serialization=True)"
    return (
        f": {pickles[0]} is a pickle and is not read, since reading one can run any code. If you trust it, convert it: "
        'python -c "import torch; from safetensors.torch import save_file; save_file({k: v.contiguous() for k, v in '
        f"torch.load('{folder / pickles[0]}', weights_only=True).items()}}, '{folder}/adapter_model.safetensors')\""
    )
