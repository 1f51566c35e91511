"""The branches of a merge as deltas: adapters, whole fine-tuned models, or one of each."""

from collections.abc import Collection, Mapping
from pathlib import Path

from paft.chat.vocabulary import difference_of_vocabularies
from paft.delta.adapter import read_adapters
from paft.delta.checkpoint import is_checkpoint, read_difference
from paft.delta.delta import StoredDelta
from paft.delta.stored import StoredDifference
from paft.merge.method import Adapters


def read_branches(base: Path, folders: Mapping[str, Path], *, same: Collection[str] = ()) -> Adapters:
    """What each folder adds to `base`: a model folder its difference, any other the delta of its adapter.

    Raises `ValueError` as `read_model` and `read_adapters` do.
    """
    models = {branch: folder for branch, folder in folders.items() if is_checkpoint(folder)}
    adapters = {branch: folder for branch, folder in folders.items() if branch not in models}
    deltas: dict[str, Mapping[str, StoredDelta]] = {}
    if adapters or not models:
        deltas |= read_adapters(adapters, base, same=same)
    deltas |= {branch: read_model(base, folder) for branch, folder in models.items()}
    return {branch: deltas[branch] for branch in folders}


def read_model(base: Path, folder: Path) -> dict[str, StoredDifference]:
    """`read_difference`. Raises `ValueError` as it does, and as `refuse_other_vocabulary`."""
    refuse_other_vocabulary(base, folder)
    return read_difference(base, folder)


def refuse_other_vocabulary(base: Path, folder: Path) -> None:
    """Raise `ValueError` for a model whose tokenizer numbers tokens otherwise than the base's: a row of its embedding
    would be added to that of another token."""
    if wrong := difference_of_vocabularies(base, folder):
        raise ValueError(
            f"{base} and {folder} cannot be merged: {wrong}; give the base that it was trained on"
        )
