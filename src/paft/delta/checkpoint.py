"""A whole fine-tuned model as a delta: its weights minus the base's, in float32. Without torch.

Both models are read where they lie, sharded or not, each tensor in its own float type. Tensors of equal values are no
delta, so what a training froze is copied from the base.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from paft.delta.rows import FLOATS, blocks_of
from paft.delta.settings import difference_of_settings
from paft.delta.stored import StoredDifference, StoredTensor
from paft.files.jsonfile import read_object
from paft.files.safetensors import read_checkpoint

BUFFERS = ("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias", "attention.bias", "attention.masked_bias")
"""How tensors end that older releases saved and models compute: angles of positions, masks of the future."""


def read_difference(base: Path, tuned: Path) -> dict[str, StoredDifference]:
    """The delta of every tensor in which the model folder `tuned` differs from `base`, under its name in the base.

    Settings and names are compared from the headers alone, values until the first that differs. Raises `ValueError`
    naming the difference for a model that is no fine-tuned `base`: another architecture, other tensors or shapes; for
    one that is quantised or pickled; and for one that is equal to the base.
    """
    for folder in (base, tuned):
        refuse_quantised(folder)
    if wrong := difference_of_settings(base, tuned, here="in the base", there="in the other"):
        raise ValueError(_not_a_tuned(base, tuned, wrong))
    pairs = list(_pairs(base, tuned))
    delta = {name: StoredDifference(after, before) for name, before, after in pairs if _differ(before, after)}
    if not delta:
        raise ValueError(f"{tuned} has the weights of {base}: there is no delta; give the fine-tuned model")
    return delta


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a whole model, and no adapter, by the files it holds."""
    return (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file()


def tensors_of(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a model folder."""
    files = read_checkpoint(folder).items()
    return {name: StoredTensor(path, stored) for path, tensors in files for name, stored in tensors.items()}


def refuse_quantised(folder: Path) -> None:
    """Raise `ValueError` for a model whose stored weights are not those it computes with."""
    config = read_object(folder / "config.json")
    settings = config.get("quantization_config") or config.get("quantization")
    if settings:
        kind = settings.get("quant_method", settings) if isinstance(settings, Mapping) else settings
        raise ValueError(
            f"{folder} is quantised ({kind!s:.60}): its weights cannot be subtracted; give the model as it was before"
        )


def _pairs(base: Path, tuned: Path) -> Iterator[tuple[str, StoredTensor, StoredTensor]]:
    """(name, the base's tensor, the fine-tuned model's) of those that both hold and loading does not overwrite."""
    before, after = tensors_of(base), tensors_of(tuned)
    for here, there in ((before, after), (after, before)):
        for name in here.keys() - there.keys():
            if not name.endswith(BUFFERS) and not _has_twin(name, here):
                holder = base if here is before else tuned
                raise ValueError(_not_a_tuned(base, tuned, f"only {holder} holds {name}"))
    tied = ties_head(base)
    for name in before:
        if name in after and not tied(name):
            _refuse_other_form(base, tuned, name, before[name], after[name])
            yield name, before[name], after[name]


def ties_head(folder: Path) -> Callable[[str], bool]:
    """Whether loading a model makes the tensor of a name from its embedding, whatever the file holds."""
    tied = bool(read_object(folder / "config.json").get("tie_word_embeddings", False))
    return lambda name: tied and name.split(".")[-2:-1] == ["lm_head"]


def _has_twin(name: str, tensors: Mapping[str, StoredTensor]) -> bool:
    """Whether another tensor of the model has the same values, as an output head tied to the embedding."""
    tensor = tensors[name]
    same_shape = (t for n, t in tensors.items() if n != name and t.stored.shape == tensor.stored.shape)
    return any(not _differ(tensor, other) for other in same_shape)


def _refuse_other_form(base: Path, tuned: Path, name: str, before: StoredTensor, after: StoredTensor) -> None:
    if before.stored.shape != after.stored.shape:
        shapes = f"{list(before.stored.shape)} in {base} and {list(after.stored.shape)} in {tuned}"
        raise ValueError(_not_a_tuned(base, tuned, f"{name} is {shapes}"))
    if before.stored.dtype in FLOATS and after.stored.dtype in FLOATS:
        return
    if before.stored.dtype != after.stored.dtype or _bytes(before) != _bytes(after):
        types = f"{before.stored.dtype} in {base} and {after.stored.dtype} in {tuned}"
        floats = f"a delta is of {', '.join(FLOATS)}"
        raise ValueError(_not_a_tuned(base, tuned, f"{name} differs and is stored as {types}; {floats}"))


def _differ(a: StoredTensor, b: StoredTensor) -> bool:
    """Whether any value differs; NaN differs from everything. Stops at the first block that does."""
    if not {a.stored.dtype, b.stored.dtype} <= FLOATS.keys():
        return a.stored.dtype != b.stored.dtype or _bytes(a) != _bytes(b)
    return not all(np.array_equal(x, y) for _, (x, y) in blocks_of(a, b))


def _bytes(tensor: StoredTensor) -> bytes:
    with tensor.path.open("rb") as file:
        file.seek(tensor.stored.begin)
        return file.read(tensor.stored.end - tensor.stored.begin)


def _not_a_tuned(base: Path, tuned: Path, difference: str) -> str:
    return (
        f"{tuned} is not {base} fine-tuned, so there is no delta between them: {difference}. Give the base that it "
        "was trained on, both saved by save_pretrained"
    )
