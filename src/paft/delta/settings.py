"""In what two models' config.json differ, as far as it changes what they compute. Without torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paft.files.jsonfile import read_object

INCIDENTAL = {
    "_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "bos_token_id", "eos_token_id",
    "pad_token_id", "quantization_config", "auto_map", "attn_implementation", "_attn_implementation",
    "initializer_range", "pretraining_tp", "unsloth_version", "unsloth_fixed",
}  # fmt: skip
"""What config.json of one model may say otherwise in another copy of it. Dropouts act in training alone."""
ROPE = ("rope_parameters", "rope_scaling", "rope_theta")
"""Where the rotation of positions stands: all in the first since transformers 5, in the other two before."""


def difference_of_settings(a: Path, b: Path, *, here: str = "here", there: str = "there") -> str | None:
    """The first setting in which two model folders differ, in words: `a` is called `here`, `b` is called `there`.

    A setting that only one of them states is at its default in the other, but for a scaling of rotary positions: that
    has none. Without scaling the length of the longest text changes nothing.
    """
    ours, theirs = (_settings(folder) for folder in (a, b))
    first, second = _scaling(ours), _scaling(theirs)
    if first != second:
        by = [f"{scaling or 'nothing'!s:.100}" for scaling in (first, second)]
        return f"config.json scales positions by {by[0]} {here} and {by[1]} {there}"
    rest = sorted((ours.keys() & theirs.keys()) - INCIDENTAL - set(ROPE))
    for key in ("model_type", "architectures", *rest):
        if ours.get(key) != theirs.get(key) and not _without_effect(key, first):
            return (
                f"config.json says {key}={ours.get(key)!r:.100} {here} and {theirs.get(key)!r:.100} {there}"
            )
    base, other = _theta(ours), _theta(theirs)
    if base is None or other is None or base == other:
        return None
    return f"config.json says rope_theta={base!r:.100} {here} and {other!r:.100} {there}"


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    return read_object(path) if path.is_file() else {}


def _without_effect(key: str, scaling: Mapping[str, Any]) -> bool:
    return "drop" in key or (key == "max_position_embeddings" and not scaling)


def _scaling(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What stretches the rotation of positions; empty for the plain one."""
    given = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    if not isinstance(given, Mapping):
        return {"rope_scaling": given}
    rest = {key: value for key, value in given.items() if key not in ("rope_theta", "type", "rope_type")}
    kind = given.get("rope_type", given.get("type", "default"))
    return {} if kind == "default" and not rest else {"rope_type": kind, **rest}


def _theta(settings: Mapping[str, Any]) -> Any:
    parameters = settings.get("rope_parameters")
    inner = parameters.get("rope_theta") if isinstance(parameters, Mapping) else None
    return settings.get("rope_theta") if inner is None else inner
