"""The parameters of a mergekit method for each tensor, looked up in every scope of a recipe."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import chain

from paft.merge.mergekit.recipe import Recipe, Slice
from paft.merge.mergekit.reference import Reference
from paft.merge.mergekit.settings import Place, Settings, number, resolve, truth

LAYER = re.compile(r"\.(\d+)\.")
"""In the name of a tensor: the number of its layer."""


class Keeps(Enum):
    """What a method keeps of a delta of some density."""

    everything = auto()
    largest = auto()
    at_random = auto()
    below_outliers = auto()
    by_rank = auto()


@dataclass(frozen=True)
class Kind:
    """A method: its parameters with their defaults (None: must be set), and how it is done here."""

    of_model: Mapping[str, float | None] = field(default_factory=dict)
    shared: Mapping[str, bool | float | None] = field(default_factory=dict)
    of_deltas: bool = True
    """Whether models count by their difference from the base, which is then no input itself."""
    elects: bool = False
    keeps: Keeps = Keeps.everything


def _task_vectors(
    keeps: Keeps = Keeps.everything,
    *,
    elects: bool = False,
    normalize: bool = False,
    rescale: bool = False,
    **of_model: float,
) -> Kind:
    shared = {"normalize": normalize, "rescale": rescale, "lambda": 1.0, "int8_mask": False}
    return Kind({"weight": None, "density": 1.0, **of_model}, shared, elects=elects, keeps=keeps)


KINDS = {
    "linear": Kind({"weight": None}, {"normalize": True}, of_deltas=False),
    "slerp": Kind({}, {"t": None}, of_deltas=False),
    "nuslerp": Kind({"weight": None}, {"nuslerp_flatten": True, "nuslerp_row_wise": False}),
    "task_arithmetic": _task_vectors(),
    "ties": _task_vectors(Keeps.largest, elects=True, normalize=True),
    "dare_ties": _task_vectors(Keeps.at_random, elects=True, rescale=True),
    "dare_linear": _task_vectors(Keeps.at_random, rescale=True),
    "breadcrumbs": _task_vectors(Keeps.below_outliers, gamma=0.01),
    "breadcrumbs_ties": _task_vectors(Keeps.below_outliers, elects=True, gamma=0.01),
    "della": _task_vectors(Keeps.by_rank, elects=True, normalize=True, rescale=True, epsilon=0.15),
    "della_linear": _task_vectors(Keeps.by_rank, rescale=True, epsilon=0.15),
    "ram": Kind({}, {"epsilon": 1e-5}),
    "ramplus_tl": Kind({}, {"r": 0.1, "alpha": 0.2, "epsilon": 1e-5}),
}
"""mergekit's name of a method -> what it reads; int8_mask saves memory and changes no number."""


@dataclass(frozen=True)
class Parameters:
    """Of one tensor: a value for each input, and those for all of them."""

    of_model: Mapping[str, list[float]]
    shared: Mapping[str, bool | float]


def inputs_of(recipe: Recipe) -> tuple[Reference, ...]:
    """The models that are merged. Raises `ValueError` for a method or a number of models that cannot be."""
    if (kind := KINDS.get(recipe.method)) is None:
        raise ValueError(f"merge_method must be one of {', '.join(KINDS)}, got {recipe.method!r:.60}")
    base_required = recipe.method not in ("linear", "nuslerp")
    if base_required and recipe.base is None:
        raise ValueError(f"{recipe.method} needs a base_model")
    if recipe.base is not None and recipe.base not in recipe.models and recipe.method != "linear":
        raise ValueError(f"base_model {recipe.base} must be among the sources of every slice")
    inputs = recipe.models
    if recipe.method == "slerp":
        inputs = tuple(sorted(inputs, key=lambda model: model != recipe.base))
    elif kind.of_deltas:
        inputs = tuple(model for model in inputs if model != recipe.base)
    if recipe.method in ("slerp", "nuslerp") and len(inputs) != 2:
        raise ValueError(f"{recipe.method} joins two models, got {len(inputs)}")
    return inputs


def parameters_of(recipe: Recipe, names: Collection[str], num_layers: int) -> dict[str, Parameters]:
    """Those of every tensor. Raises `ValueError` naming a parameter that is missing or no value."""
    inputs = inputs_of(recipe)
    end = recipe.slices[-1].layers
    if end is not None and end.stop != num_layers:
        raise ValueError(
            f"the slices end at layer {end.stop} of {num_layers}: merges here keep every layer where it is"
        )
    return {name: _parameters(recipe, inputs, name, num_layers) for name in names}


def unused(recipe: Recipe) -> list[str]:
    """Parameters that are set and that the method does not have: mergekit reads none of them either."""
    kind = KINDS[recipe.method]
    everywhere = chain.from_iterable([piece.parameters, *piece.of_model.values()] for piece in recipe.slices)
    names = dict.fromkeys(name for settings in (recipe.parameters, *everywhere) for name in settings)
    return [name for name in names if name not in (*kind.of_model, *kind.shared)]


def _parameters(recipe: Recipe, inputs: Collection[Reference], name: str, num_layers: int) -> Parameters:
    kind = KINDS[recipe.method]
    piece, along = _slice_of(recipe, name, num_layers)
    place, shared = Place(name, along), [*piece.scopes(), recipe.parameters]
    of_model = {
        parameter: [
            float(_required(parameter, [*piece.scopes(model), recipe.parameters], place, default, str(model)))
            for model in inputs
        ]
        for parameter, default in kind.of_model.items()
    }
    each = kind.shared.items()
    values = {p: _required(p, shared, place, default, recipe.method) for p, default in each}
    if recipe.method == "linear" and values["normalize"] and abs(sum(of_model["weight"])) < 1e-8:
        raise ValueError(
            f"weights must not sum to 0 where they are normalized, got {of_model['weight']} for {name}"
        )
    if kind.keeps is Keeps.by_rank:
        _require_chances(of_model["density"], of_model["epsilon"], name)
    if not values.get("nuslerp_flatten", True):
        raise ValueError(
            "nuslerp_flatten=false cannot be used: tensors are turned as one vector here, and not by row"
        )
    return Parameters(of_model, values)


def _require_chances(densities: list[float], epsilons: list[float], name: str) -> None:
    for density, epsilon in zip(densities, epsilons, strict=True):
        if 0 < density < 1 and not 0 <= epsilon < min(density, 1 - density):
            raise ValueError(
                f"density - epsilon and density + epsilon must be in (0, 1), got density={density:g} and "
                f"epsilon={epsilon:g} for {name}"
            )


def _required(
    parameter: str, scopes: list[Settings], place: Place, default: bool | float | None, of: str
) -> bool | float:
    kind = truth if isinstance(default, bool) else number
    value: bool | float | None = resolve(parameter, scopes, place, kind)
    value = default if value is None else value
    if value is None:
        raise ValueError(f"{of} needs the parameter {parameter} for {place.tensor}; add it under parameters")
    return value


def _slice_of(recipe: Recipe, name: str, num_layers: int) -> tuple[Slice, float]:
    """Where a tensor's parameters stand, and how far along; those before and after the layers are at the beginning."""
    match = LAYER.search(name)
    if match is None:
        return recipe.slices[0 if _before_layers(name) else -1], 0.0
    layer = int(match[1])
    for piece in recipe.slices:
        layers = piece.layers or range(num_layers)
        if layer in layers:
            return piece, (layer - layers.start) / (len(layers) - 1) if len(layers) > 1 else 1.0
    return recipe.slices[-1], 0.0


def _before_layers(name: str) -> bool:
    """Whether a tensor outside layers is an embedding: its slice is the first, that of norm and head the last."""
    return any(part in name for part in ("embed", "wte", "wpe")) and "embed_out" not in name
