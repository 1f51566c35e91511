"""A mergekit YAML as a planned merge, so that it is computed, written and proved as every merge here."""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from paft.chat.standalone import TEMPLATE, copy_tokenizer
from paft.chat.vocabulary import refuse_other_vocabulary
from paft.delta.adapter import read_adapter
from paft.delta.base import BaseTensors
from paft.delta.checkpoint import read_difference
from paft.delta.delta import StoredDelta
from paft.delta.rows import FLOATS
from paft.delta.stored import StoredSum
from paft.files.jsonfile import read_object
from paft.merge.layout import STORED
from paft.merge.mergekit.parameters import Parameters, inputs_of, parameters_of, unused
from paft.merge.mergekit.plan import RecipePlan
from paft.merge.mergekit.recipe import Recipe, read_recipe
from paft.merge.mergekit.reference import Reference
from paft.merge.mergekit.tokenizer import tokenizer_of
from paft.merge.origin import refuse_other_base
from paft.merge.planned import PlannedMerge

log = logging.getLogger("paft")

COPY = "mergekit_config.yml"
"""What mergekit calls the file in the folder of a merged model."""
LAYERS = ("num_hidden_layers", "n_layer", "num_layers")


@dataclass(frozen=True)
class RecipeMerge:
    """The merge that a YAML file asks for, and the files that go out with its weights."""

    path: Path
    merge: PlannedMerge
    tokenizer: Path | None
    """The folder it comes from; None: the one that is rewritten."""
    chat_template: str | None

    def write_beside(self, out: Path) -> None:
        """Tokenizer and template, and the recipe under the name that mergekit gives it."""
        if self.tokenizer is not None:
            copy_tokenizer(self.tokenizer, out)
        if self.chat_template is not None:
            (out / TEMPLATE).write_text(self.chat_template, encoding="utf-8")
        shutil.copyfile(self.path, out / COPY)


def plan_recipe(path: Path, *, seed: int = 42) -> RecipeMerge:
    """What the YAML file `path` asks for; `paft.merge.apply.write_model` writes its merge.

    The folder that is rewritten is the base's, or the first model's where there is no base. Random masks are drawn from
    `seed`, the number of the input and the name of the tensor. Raises `ValueError` naming the file for what it asks and
    cannot be done as mergekit does it. An adapter of another
    model is added all the same, which the log says.
    """
    recipe = read_recipe(path)
    try:
        merge, root = _planned(recipe, seed)
        return RecipeMerge(path, merge, tokenizer_of(recipe, root), recipe.chat_template)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _planned(recipe: Recipe, seed: int) -> tuple[PlannedMerge, Path]:
    inputs = inputs_of(recipe)
    first = recipe.base if recipe.base is not None and recipe.base in recipe.models else recipe.models[0]
    root = first.model.folder()
    if (
        recipe.base is not None
        and recipe.base.adapter is not None
        and recipe.method not in ("linear", "slerp")
    ):
        raise ValueError(
            f"base_model={recipe.base} has an adapter: merge it first, {recipe.method} counts from one model"
        )
    tensors = BaseTensors.of(root)
    names = [name for name, tensor in tensors.tensors.items() if tensor.stored.dtype in FLOATS]
    parameters = parameters_of(recipe, names, _num_layers(root))
    deltas = {str(model): _read(root, model) for model in inputs}
    _say(recipe)
    plan = RecipePlan(recipe.method, parameters, of_weights=recipe.base is None, seed=seed)
    labels = {"method": recipe.method, "variant": f"mergekit {recipe.method} of {', '.join(deltas)}"}
    also = _also(recipe, tensors, parameters)
    return PlannedMerge(root, deltas, plan, recipe.dtype, labels, also), root


def _read(root: Path, model: Reference) -> Mapping[str, StoredDelta]:
    """A model minus the one in `root`, its adapter included."""
    folder = model.model.folder()
    delta: dict[str, StoredDelta] = {}
    if folder.resolve() != root.resolve():
        refuse_other_vocabulary(root, {"listed": folder})
        delta |= read_difference(root, folder)
    if model.adapter is None:
        return delta
    adapter = model.adapter.folder()
    try:
        refuse_other_base(folder, {"listed": adapter})
    except ValueError as difference:
        log.warning("%s; added all the same, as the file says", str(difference).partition(". Give")[0])
    added = read_adapter(adapter, folder)
    both = {name: StoredSum([delta[name], added[name]]) for name in delta.keys() & added.keys()}
    return delta | added | both


def _also(recipe: Recipe, root: BaseTensors, parameters: Mapping[str, Parameters]) -> list[str]:
    """Tensors that change though no model differs there: stored as another type, or times a sum of weights."""
    dtype = None if recipe.dtype is None else STORED[recipe.dtype]
    return [
        name
        for name, values in parameters.items()
        if not root.is_tied_head(name)
        and (
            (recipe.method == "linear" and not values.shared["normalize"])
            or (dtype is not None and dtype != root.tensors[name].stored.dtype)
        )
    ]


def _num_layers(root: Path) -> int:
    settings = read_object(root / "config.json")
    settings |= settings.get("text_config") or {}
    return next((int(settings[name]) for name in LAYERS if isinstance(settings.get(name), int)), 0)


def _say(recipe: Recipe) -> None:
    if ignored := [*recipe.unread, *unused(recipe)]:
        log.warning("not used, by mergekit neither: %.300s", ", ".join(map(ascii, ignored)).replace("'", ""))
    if recipe.arithmetic not in (None, "float32"):
        log.warning(
            "computed in float32 and rounded to %s once; mergekit rounds to %s in between",
            recipe.dtype, recipe.arithmetic,
        )  # fmt: skip
