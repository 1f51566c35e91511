"""What of the user's callbacks is part of a training's key: their classes, arguments and source. Loads no torch.

A callback may change the weights, the learning rate or the number of steps, so a training with one is another
training. PAFT's own and those of Lightning that only watch are in no key.
"""

import hashlib
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from paft.files.fingerprint import file_sha256

OWN = ("paft.callbacks.sparsity.DeltaSparsity", "paft.callbacks.merge_then_evaluate.MergeThenEvaluate")
WATCHERS = (
    *(
        "DeviceStatsMonitor",
        "LearningRateMonitor",
        "ModelSummary",
        "OnExceptionCheckpoint",
        "RichModelSummary",
    ),
    *("RichProgressBar", "ThroughputMonitor", "TQDMProgressBar"),
)
"""Classes of `lightning.pytorch.callbacks` that read a training and leave it as it is."""


def identities(callbacks: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The `callbacks` group without what only watches, in its order, each with the sha256 of its source.

    None where nothing is left. A module that cannot be found has no part: no result can come of it.
    """
    identified = []
    for spec in callbacks.values():
        sources = {target: source_sha256(target) for target in targets(spec) if not watches(target)}
        if sources and all(sources.values()):
            identified.append({"callback": spec, "source": sources})
    return identified or None


def refuse_unknown(callbacks: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a callback that names no class, or one of a module that cannot be found."""
    for name, spec in callbacks.items():
        if spec is None:  # how a command line switches off one of a group
            continue
        if not isinstance(spec, Mapping) or not isinstance(spec.get("_target_"), str):
            raise ValueError(
                f"callbacks.{name} must be a class and its arguments, as {{_target_: module.Class, every: 10}}, or "
                f"null to leave it out; got {spec!r:.200}"
            )
        for target in targets(spec):
            if source_sha256(target) is None:
                raise ValueError(
                    f"callbacks.{name} names {target}, and there is no module {target.split('.')[0]!r}; put its "
                    "folder on PYTHONPATH or install its package"
                )


def targets(spec: Any) -> Iterator[str]:
    """Every `_target_` at any depth."""
    if isinstance(spec, Mapping):
        if isinstance(spec.get("_target_"), str):
            yield spec["_target_"]
        spec = list(spec.values())
    if isinstance(spec, list):
        for item in spec:
            yield from targets(item)


def watches(target: str) -> bool:
    package, *_, name = target.split(".")
    return target in OWN or (package == "lightning" and name in WATCHERS)


def source_sha256(target: str) -> str | None:
    """Hex sha256 over the Python files of the class `target`: its module, or all of the package that holds it.

    None where its top-level module cannot be found, or is the script that runs. Nothing is imported.
    """
    top, *rest = target.split(".")
    try:
        spec = None if top == "__main__" else importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    folder, files = Path(), [Path(spec.origin)] if spec.has_location and spec.origin else []
    if spec.submodule_search_locations:
        folder = Path(next(iter(spec.submodule_search_locations)))
        for part in rest:
            folder = folder / part if (folder / part).is_dir() else folder
        files = sorted(folder.rglob("*.py"))
    digest = hashlib.sha256()
    for path in files:
        name = path.relative_to(folder) if folder.parts else path.name
        digest.update(f"{name}\0{file_sha256(path)}\0".encode())
    return digest.hexdigest()
