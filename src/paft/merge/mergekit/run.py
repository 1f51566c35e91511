"""A mergekit YAML to a merged model folder, on the same streaming path as every merge here."""

import logging
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from paft.chat.standalone import TEMPLATE, copy_tokenizer
from paft.chat.vocabulary import difference_of_vocabularies, read_vocabulary
from paft.delta.adapter import read_adapter
from paft.delta.checkpoint import read_difference, tensors_of, ties_head
from paft.delta.delta import StoredDelta
from paft.delta.rows import FLOATS
from paft.delta.stored import StoredSum, StoredTensor
from paft.files.jsonfile import read_object
from paft.merge.apply import single_threaded_blas, write_merged
from paft.merge.layout import STORED
from paft.merge.mergekit.parameters import inputs_of, parameters_of, unused
from paft.merge.mergekit.plan import RecipePlan
from paft.merge.mergekit.recipe import Recipe, read_recipe
from paft.merge.mergekit.reference import Reference
from paft.merge.origin import refuse_other_base

log = logging.getLogger("paft")

COPY = "mergekit_config.yml"
"""What mergekit calls the file in the folder of a merged model."""
LAYERS = ("num_hidden_layers", "n_layer", "num_layers")


def merge_recipe(path: Path, out: Path, *, seed: int = 42, same_base: bool = False) -> dict[str, Any]:
    """Write the model that the YAML file `path` describes to `out`; reports as `merge_adapters` does.

    The folder that is rewritten is the base's, or the first model's where there is no base: its files beside the
    weights go out too. Random masks are drawn from `seed`, the input's number and the tensor's name. Raises
    `ValueError` naming the file for what it asks and cannot be done as mergekit does it, before anything is written.
    """
    recipe = read_recipe(path)
    try:
        return _merge(recipe, path, out, seed=seed, same_base=same_base)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _merge(recipe: Recipe, path: Path, out: Path, *, seed: int, same_base: bool) -> dict[str, Any]:
    inputs = inputs_of(recipe)
    rewritten = recipe.base if recipe.base in recipe.models and recipe.base is not None else recipe.models[0]
    root = rewritten.model.folder()
    _refuse_adapter_of_base(recipe)
    stored = {name: t for name, t in tensors_of(root).items() if t.stored.dtype in FLOATS}
    parameters = parameters_of(recipe, stored, _num_layers(root))
    tokenizer = _tokenizer(recipe, root)
    deltas = {str(model): _read(root, model, same_base=same_base) for model in inputs}
    of_weights = recipe.base is None
    plan = RecipePlan(recipe.method, parameters, of_weights, seed)
    _say(recipe)
    labels = {"method": recipe.method, "variant": f"mergekit {recipe.method} of {len(inputs)} models"}
    with single_threaded_blas():
        report = write_merged(
            root, deltas, plan, out, recipe.dtype, also=_also(recipe, root, stored, parameters)
        )
    if tokenizer is not None:
        copy_tokenizer(tokenizer, out)
    if recipe.chat_template is not None:
        (out / TEMPLATE).write_text(recipe.chat_template, encoding="utf-8")
    shutil.copyfile(path, out / COPY)
    return labels | report


def _read(root: Path, model: Reference, *, same_base: bool) -> Mapping[str, StoredDelta]:
    """A model minus the one in `root`, its adapter included."""
    folder = model.model.folder()
    delta: dict[str, StoredDelta] = {}
    if folder.resolve() != root.resolve():
        if wrong := difference_of_vocabularies(root, folder):
            raise ValueError(f"{wrong}; merges here keep every token at its id")
        delta |= read_difference(root, folder)
    if model.adapter is None:
        return delta
    adapter = model.adapter.folder()
    if not same_base:
        refuse_other_base(folder, {str(model): adapter})
    added = read_adapter(adapter)
    both = {name: StoredSum([delta[name], added[name]]) for name in delta.keys() & added.keys()}
    return delta | added | both


def _refuse_adapter_of_base(recipe: Recipe) -> None:
    if (
        recipe.base is not None
        and recipe.base.adapter is not None
        and recipe.method not in ("linear", "slerp")
    ):
        raise ValueError(
            f"base_model={recipe.base} has an adapter and {recipe.method} counts from it: merge it with its model first"
        )


def _also(
    recipe: Recipe, root: Path, stored: Mapping[str, StoredTensor], parameters: Mapping[str, Any]
) -> Iterable[str]:
    """Tensors that change though no model differs there: stored as another type, or times a sum of weights."""
    dtype = None if recipe.dtype is None else STORED[recipe.dtype]
    multiplied = recipe.method == "linear" and any(
        not told.shared["normalize"] for told in parameters.values()
    )
    tied = ties_head(root)
    return [
        name
        for name, tensor in stored.items()
        if (multiplied or tensor.stored.dtype != (dtype or tensor.stored.dtype)) and not tied(name)
    ]


def _tokenizer(recipe: Recipe, root: Path) -> Path | None:
    """The folder whose tokenizer goes out; None: that of the folder that is rewritten.

    Raises `ValueError` where mergekit would cut or fill embeddings for the tokenizer that is asked for.
    """
    if recipe.tokenizer is None:
        return None
    if recipe.tokenizer == "base" and recipe.base is None:
        raise ValueError("tokenizer_source=base needs a base_model")
    named = recipe.tokenizer not in ("base", "union")
    source = Reference.parse(recipe.tokenizer).model.folder() if named else root
    folders = dict.fromkeys([root, source, *(model.model.folder() for model in recipe.models)])
    vocabularies = [read_vocabulary(folder / "tokenizer.json") for folder in folders]
    rows = read_object(root / "config.json").get("vocab_size")
    if any(vocabulary != vocabularies[0] for vocabulary in vocabularies) or rows != len(vocabularies[0]):
        raise ValueError(
            f"tokenizer_source={recipe.tokenizer} would change the embedding: it has {rows} rows, the tokenizers have "
            f"{', '.join(str(len(vocabulary)) for vocabulary in vocabularies)} tokens; merges here keep it as it is: "
            "leave tokenizer_source out"
        )
    return source if named else None


def _num_layers(root: Path) -> int:
    settings = read_object(root / "config.json")
    settings |= settings.get("text_config") or {}
    return next((int(settings[name]) for name in LAYERS if isinstance(settings.get(name), int)), 0)


def _say(recipe: Recipe) -> None:
    if ignored := [*recipe.unread, *unused(recipe)]:
        log.warning("not used, by mergekit neither: %s", ", ".join(ignored))
    if recipe.arithmetic not in (None, "float32"):
        log.warning(
            "computed in float32 and rounded to %s once; mergekit rounds to %s in between",
            recipe.dtype, recipe.arithmetic,
        )  # fmt: skip
