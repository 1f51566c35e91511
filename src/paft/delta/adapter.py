"""PEFT LoRA folders, and those of full fine-tuning, as deltas, read from their files without torch or peft.

Whatever peft writes that is a change of the base's tensors is read: factors of linear layers and embeddings, those of
DoRA, weights that were trained whole (`modules_to_save`, biases), under every prefix in use.
"""

from collections.abc import Collection, Mapping
from itertools import combinations
from pathlib import Path

import numpy as np

from paft.delta.base import BaseTensors
from paft.delta.delta import StoredDelta
from paft.delta.dora import StoredDora
from paft.delta.full import StoredSparse, is_full_delta, read_full_delta
from paft.delta.peft_config import PeftConfig
from paft.delta.peft_deltas import PeftDeltas
from paft.delta.peft_keys import read_adapter_file
from paft.delta.rows import PANEL, Array, row_blocks
from paft.delta.stored import StoredDifference, StoredFactors, StoredSum
from paft.files.jsonfile import read_object

NAMES_OF_BASE = ("base_model_name_or_path", "revision", "base")
"""What two adapters say of their base, by name or by fingerprint."""


def read_adapters(
    folders: Mapping[str, Path], base: Path | None = None, *, same: Collection[str] = ()
) -> dict[str, dict[str, StoredDelta]]:
    """`read_adapter` of every branch. Raises `ValueError` unless all share base, tokenizer and template.

    Their paft.json says so; where an adapter has none, base_model_name_or_path and revision are compared. Keys in
    `same` are not: the caller knows that they mean one thing.
    """
    if not folders:
        raise ValueError("adapters must hold at least one adapter folder, got none")
    read = {branch: read_adapter(folder, base) for branch, folder in folders.items()}
    for a, b in combinations(folders.values(), 2):
        first, second = _origins(a, b)
        for key in sorted((first.keys() | second.keys()) - set(same)):
            if first.get(key) != second.get(key):
                raise ValueError(
                    f"{a} and {b} cannot be merged: {key!r:.100} is {first.get(key)!r:.100} in the first "
                    f"and {second.get(key)!r:.100} in the second; train both from the same one"
                )
    return read


def _origins(a: Path, b: Path) -> list[dict[str, str | None]]:
    if all((folder / "paft.json").is_file() for folder in (a, b)):
        return [read_object(folder / "paft.json") for folder in (a, b)]
    configs = [{} if is_full_delta(f) else read_object(f / "adapter_config.json") for f in (a, b)]
    return [{key: c.get(key) for key in ("base_model_name_or_path", "revision")} for c in configs]


def read_adapter(folder: Path, base: Path | None = None) -> dict[str, StoredDelta]:
    """The delta of every changed tensor, under its name in the base checkpoint, of a branch's folder: a PEFT LoRA or
    what full fine-tuning has saved.

    Every value is read once and checked, none is kept; a saved weight that is the base's own is no delta. Without a
    `base` only factors of linear layers and full fine-tuning can be read, under the names they were saved with, and
    deltas of 0 are kept. Raises `ValueError` naming the folder for what `describe_adapter` refuses, and for values that
    are not finite.
    """
    described = describe_adapter(folder, base)
    checked = {name: _checked(folder, name, stored) for name, stored in described.items()}
    return described if base is None else {n: stored for n, stored in checked.items() if stored is not None}


def describe_adapter(folder: Path, base: Path | None = None) -> dict[str, StoredDelta]:
    """The same from the headers of the files alone, for a look at names and shapes.

    Raises `ValueError` naming the folder for an adapter that no change of the base's tensors stands for, for parts
    that are missing, and for tensors that the base does not hold or that have another shape there.
    """
    if is_full_delta(folder):
        return dict(read_full_delta(folder, None if base is None else BaseTensors.of(base)))
    config, file = PeftConfig.of(folder), read_adapter_file(folder)
    return PeftDeltas(config, file, None if base is None else BaseTensors.of(base)).read()


def _checked(folder: Path, name: str, stored: StoredDelta) -> StoredDelta | None:
    """A delta without saved weights that are the base's own, if any of it is left. Raises `ValueError` for NaN."""
    match stored:
        case StoredSum(parts):
            left = [part for p in parts if (part := _checked(folder, name, p)) is not None]
            return StoredSum(left) if len(left) > 1 else next(iter(left), None)
        case StoredDifference() | StoredSparse():
            return stored if _differs(folder, name, stored) else None
        case StoredDora():
            _refuse_infinite(folder, name, _largest(stored.magnitude[:]))
            _checked(folder, name, stored.factors)
        case StoredFactors():
            factors = stored.load()
            bound = max(1.0, abs(factors.scaling)) * factors.A.shape[0]
            _refuse_infinite(folder, name, bound * _largest(factors.A) * _largest(factors.B))
    return stored


def _differs(folder: Path, name: str, stored: StoredDifference | StoredSparse) -> bool:
    """Whether any value is not 0."""
    differs = False
    for rows in row_blocks(stored.shape, PANEL):
        with np.errstate(all="ignore"):  # what is not finite is refused here
            largest = _largest(stored[rows])
        _refuse_infinite(folder, name, largest)
        differs = differs or largest > 0
    return differs


def _refuse_infinite(folder: Path, name: str, bound: float) -> None:
    # with NaN in it the bound is NaN, which is not below anything
    if not bound < float(np.finfo(np.float32).max):
        raise ValueError(
            f"{folder}: the factors of {name:.100} hold NaN or infinite values, or their product would; "
            "the training diverged: train again, with a lower learning rate"
        )


def _largest(values: Array) -> float:
    """The largest magnitude, NaN where there is one."""
    return max(float(values.max(initial=0.0)), -float(values.min(initial=0.0)))
