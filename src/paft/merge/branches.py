"""The branches of a merge as deltas: adapters, whole fine-tuned models, or one of each."""

from collections.abc import Collection, Mapping
from pathlib import Path

from paft.chat.vocabulary import difference_of_vocabularies
from paft.delta.adapter import read_adapters
from paft.delta.checkpoint import is_checkpoint, read_difference
from paft.delta.delta import StoredDelta
from paft.merge.method import Adapters


def read_branches(base: Path, folders: Mapping[str, Path], *, same: Collection[str] = ()) -> Adapters:
    """What each folder adds to `base`: a model folder its difference, any other the delta of its adapter.

    Raises `ValueError` as `read_difference` and `read_adapters` do, and for a model whose tokenizer numbers tokens
    otherwise than the base's: a row of its embedding would be added to that of another token.
    """
    models = {branch: folder for branch, folder in folders.items() if is_checkpoint(folder)}
    adapters = {branch: folder for branch, folder in folders.items() if branch not in models}
    deltas: dict[str, Mapping[str, StoredDelta]] = {}
    if adapters or not models:
        deltas |= read_adapters(adapters, same=same)
    for branch, folder in models.items():
        if wrong := difference_of_vocabularies(base, folder):
            raise ValueError(
                f"{base} and {folder} cannot be merged: {wrong}; give the base that it was trained on"
            )
        deltas[branch] = read_difference(base, folder)
    return {branch: deltas[branch] for branch in folders}
