"""The branches of a merge as deltas: adapters, whole fine-tuned models, or one of each."""

from collections.abc import Collection, Mapping
from pathlib import Path

from paft.delta.adapter import read_adapters
from paft.delta.checkpoint import is_checkpoint, read_difference
from paft.delta.delta import StoredDelta
from paft.merge.method import Adapters


def read_branches(base: Path, folders: Mapping[str, Path], *, same: Collection[str] = ()) -> Adapters:
    """What each folder adds to `base`: a model folder its difference, any other the delta of its adapter.

    Raises `ValueError` as `read_difference` and `read_adapters` do.
    """
    models = {branch: folder for branch, folder in folders.items() if is_checkpoint(folder)}
    adapters = {branch: folder for branch, folder in folders.items() if branch not in models}
    deltas: dict[str, Mapping[str, StoredDelta]] = {}
    if adapters or not models:
        deltas |= read_adapters(adapters, base, same=same)
    deltas |= {branch: read_difference(base, folder) for branch, folder in models.items()}
    return {branch: deltas[branch] for branch in folders}
