"""A whole fine-tuned model as a delta: its weights minus the base's, in float32. Without torch.

Both models are read where they lie, sharded or not, each tensor in its own float type. Tensors of equal values are no
delta, so what a training froze is copied from the base.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from paft.delta.base import BaseTensors
from paft.delta.rows import FLOATS, blocks_of
from paft.delta.settings import difference_of_settings
from paft.delta.stored import StoredDifference, StoredTensor
from paft.files.jsonfile import read_object

BUFFERS = ("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias", "attention.bias", "attention.masked_bias")
"""How tensors end that older releases saved and models compute: angles of positions, masks of the future."""

Pairs = dict[str, tuple[StoredTensor, StoredTensor]]
"""The base's name of a tensor -> the base's, the fine-tuned model's."""


def read_difference(base: Path, tuned: Path) -> dict[str, StoredDifference]:
    """The delta of every tensor in which the model folder `tuned` differs from `base`, under its name in the base.

    Values are read until the first that differs. Raises `ValueError` as `pair_tensors` does, and for a model that is
    equal to the base.
    """
    pairs = pair_tensors(base, tuned)
    delta = {
        name: StoredDifference(after, before)
        for name, (before, after) in pairs.items()
        if _differ(before, after)
    }
    if not delta:
        raise ValueError(f"{tuned} has the weights of {base}: there is no delta; give the fine-tuned model")
    return delta


def pair_tensors(base: Path, tuned: Path) -> Pairs:
    """The tensors of a base and of a model that was fine-tuned from it, found from settings and headers alone.

    A tied output head is left out: loading makes it from the embedding. Raises `ValueError` naming the difference for a
    model that is no fine-tuned `base`, that of another architecture, other tensors or shapes; and for one that is
    quantised or pickled.
    """
    for folder in (base, tuned):
        _refuse_quantised(folder)
    wrong = difference_of_settings(base, tuned, here="in the base", there="in the other")
    of_base, of_tuned = BaseTensors.of(base), BaseTensors.of(tuned)
    wrong = wrong or next(_differences(of_base, of_tuned), None)
    if wrong:
        raise ValueError(
            f"{tuned} is not {base} fine-tuned, so there is no delta between them: {wrong}. Give the base that it was "
            "trained on, both saved by save_pretrained"
        )
    after = _named_as_in(of_base, of_tuned)
    return {
        name: (before, after[name])
        for name, before in of_base.tensors.items()
        if name in after and before.stored.dtype in FLOATS and not of_base.is_tied_head(name)
    }


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a whole model, and no adapter, by the files it holds."""
    return (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file()


def _refuse_quantised(folder: Path) -> None:
    config = read_object(folder / "config.json")
    settings = config.get("quantization_config") or config.get("quantization")
    if settings:
        kind = settings.get("quant_method", settings) if isinstance(settings, Mapping) else settings
        raise ValueError(
            f"{folder} is quantised ({kind!r:.60}): its weights cannot be subtracted; give the model as it was before"
        )


def _named_as_in(base: BaseTensors, other: BaseTensors) -> dict[str, StoredTensor]:
    return {base.name_of(name) or name: tensor for name, tensor in other.tensors.items()}


def _differences(base: BaseTensors, tuned: BaseTensors) -> Iterator[str]:
    """In what the tensors of two models differ other than by their values, in words."""
    before, after = base.tensors, _named_as_in(base, tuned)
    for holder, here, there in ((base, before, after), (tuned, after, before)):
        for name in here:
            if name not in there and not name.endswith(BUFFERS) and not _has_twin(name, here):
                yield f"only {holder.folder} holds {name}"
    for name in before:
        if name in after:
            yield from _differing_form(base, tuned, name, before[name], after[name])


def _has_twin(name: str, tensors: Mapping[str, StoredTensor]) -> bool:
    """Whether a matrix outside layers has the values of another one, as an output head tied to the embedding."""
    tensor = tensors[name]
    if len(tensor.stored.shape) != 2 or any(part.isdigit() for part in name.split(".")):
        return False
    others = (t for n, t in tensors.items() if n != name and t.stored.shape == tensor.stored.shape)
    return any(not _differ(tensor, other) for other in others)


def _differing_form(
    base: BaseTensors, tuned: BaseTensors, name: str, before: StoredTensor, after: StoredTensor
) -> Iterator[str]:
    if before.stored.shape != after.stored.shape:
        yield f"{name} is {list(before.stored.shape)} in {base.folder} and {list(after.stored.shape)} in {tuned.folder}"
    elif not {before.stored.dtype, after.stored.dtype} <= FLOATS.keys() and _differ(before, after):
        yield (
            f"{name} differs and is stored as {before.stored.dtype} in {base.folder} and {after.stored.dtype} in "
            f"{tuned.folder}; a delta is of {', '.join(FLOATS)}"
        )


def _differ(a: StoredTensor, b: StoredTensor) -> bool:
    """Whether any value differs; NaN differs from everything. Stops at the first block that does."""
    if {a.stored.dtype, b.stored.dtype} <= FLOATS.keys():
        return not all(np.array_equal(x, y) for _, (x, y) in blocks_of(a, b))
    return a.stored.dtype != b.stored.dtype or _bytes(a) != _bytes(b)


def _bytes(tensor: StoredTensor) -> bytes:
    with tensor.path.open("rb") as file:
        file.seek(tensor.stored.begin)
        return file.read(tensor.stored.end - tensor.stored.begin)
