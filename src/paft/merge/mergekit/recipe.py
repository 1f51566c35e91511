"""A mergekit YAML as typed data. What cannot be done here as mergekit does it is refused by its name in the file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from paft.merge.layout import STORED
from paft.merge.mergekit.reference import Reference
from paft.merge.mergekit.settings import Settings

READ = {
    "merge_method", "models", "slices", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source",
    "tokenizer", "chat_template",
}  # fmt: skip
REFUSED = {"modules": "it merges models of several parts, and these are language models of one"}


@dataclass(frozen=True)
class Slice:
    """Some layers, of every model the same ones, and what is set for them."""

    models: tuple[Reference, ...]
    layers: range | None = None
    """None: all."""
    parameters: Settings = field(default_factory=dict)
    of_model: Mapping[Reference, Settings] = field(default_factory=dict)

    def scopes(self, model: Reference | None = None) -> list[Settings]:
        """From the narrowest on."""
        return [*([self.of_model.get(model, {})] if model else []), self.parameters]


@dataclass(frozen=True)
class Recipe:
    """What a file asks for."""

    method: str
    models: tuple[Reference, ...]
    """In the order of the file; a base that it does not list is the last."""
    base: Reference | None
    slices: tuple[Slice, ...]
    parameters: Settings
    dtype: str | None
    """Of what is written; null keeps that of the base."""
    arithmetic: str | None
    """The type in which mergekit would compute."""
    tokenizer: str | None
    chat_template: str | None
    unread: tuple[str, ...]
    """Keys of the file that mergekit does not read either."""


def read_recipe(path: Path) -> Recipe:
    """The merge that a YAML file describes. Raises `ValueError` naming the file and the key that is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: byte {error.start + 1}") from None
    try:
        return _recipe(_mapping("the file", yaml.safe_load(text)))
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply to be read") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split()):.300}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _recipe(content: Mapping[str, Any]) -> Recipe:
    for key, why in REFUSED.items():
        if content.get(key):
            raise ValueError(f"{key} cannot be used: {why}")
    if bool(content.get("models")) == bool(content.get("slices")):
        raise ValueError("it must have either models or slices")
    stated = content.get("base_model")
    base = None if stated is None else Reference.parse(stated)
    slices: tuple[Slice, ...]
    if content.get("models"):
        slices = (_all_layers(_list("models", content["models"]), base),)
    else:
        slices = tuple(_slice(entry) for entry in _list("slices", content["slices"]))
        base = _one_base(base, slices, content["slices"])
    _refuse_other_layers(slices)
    arithmetic, out = (_dtype(key, content.get(key)) for key in ("dtype", "out_dtype"))
    return Recipe(
        method=str(content.get("merge_method")),
        models=slices[0].models,
        base=base,
        slices=slices,
        parameters=_mapping("parameters", content.get("parameters") or {}),
        dtype=out or arithmetic,
        arithmetic=arithmetic,
        tokenizer=_tokenizer(content),
        chat_template=_chat_template(content.get("chat_template")),
        unread=tuple(str(key) for key in content if key not in READ),
    )


def _all_layers(entries: list[Any], base: Reference | None) -> Slice:
    of_model = _inputs("models", entries)
    models = tuple(of_model)
    return Slice(models if base is None or base in of_model else (*models, base), of_model=of_model)


def _slice(entry: Any) -> Slice:
    given = _mapping("a slice", entry)
    if given.get("residual_weight") is not None:
        raise ValueError(
            "residual_weight of a slice cannot be used: mergekit reads it and does nothing with it"
        )
    sources = _list("sources", given.get("sources"))
    ranges = {
        _range(source.get("layer_range") if isinstance(source, Mapping) else None) for source in sources
    }
    if len(ranges) != 1:
        raise ValueError(
            f"a slice takes layers {', '.join(f'[{r.start}, {r.stop}]' for r in sorted(ranges, key=str))}: merges here "
            "keep every layer where it is, so all sources of a slice need one layer_range"
        )
    of_model = _inputs("sources", sources)
    return Slice(
        tuple(of_model), ranges.pop(), _mapping("parameters", given.get("parameters") or {}), of_model
    )


def _inputs(at: str, entries: list[Any]) -> dict[Reference, Settings]:
    of_model: dict[Reference, Settings] = {}
    for entry in entries:
        given = _mapping(f"each of {at}", entry)
        model = Reference.parse(given.get("model"))
        if model in of_model:
            raise ValueError(f"{model} stands twice in {at}; give each model once")
        of_model[model] = _mapping("parameters", given.get("parameters") or {})
    return of_model


def _range(value: Any) -> range:
    is_pair = isinstance(value, list) and len(value) == 2 and all(type(n) is int for n in value)
    if not is_pair or not 0 <= value[0] < value[1]:
        raise ValueError(f"layer_range must be [first layer, the one after the last], got {value!r:.100}")
    return range(*value)


def _one_base(base: Reference | None, slices: tuple[Slice, ...], entries: list[Any]) -> Reference | None:
    stated = {Reference.parse(e["base_model"]) if e.get("base_model") else base for e in entries}
    if len(stated) > 1:
        raise ValueError("slices must have one base_model; merge them one after the other")
    for piece in slices[1:]:
        if piece.models != slices[0].models:
            raise ValueError("every slice must name the same models in the same order")
    return stated.pop()


def _refuse_other_layers(slices: tuple[Slice, ...]) -> None:
    end = 0
    for layers in (piece.layers for piece in slices if piece.layers is not None):
        if layers.start != end:
            raise ValueError(
                f"a slice of layers [{layers.start}, {layers.stop}] stands where layer {end} is due: merges here keep "
                "every layer where it is, and stack, repeat or leave out none"
            )
        end = layers.stop


def _dtype(key: str, value: Any) -> str | None:
    name = None if value is None else str(value).removeprefix("torch.")
    if name is not None and name not in STORED:
        raise ValueError(f"{key} must be one of {', '.join(STORED)}, got {value!r:.100}")
    return name


def _tokenizer(content: Mapping[str, Any]) -> str | None:
    """Whose tokenizer the model gets: `base`, `union` or a model; None where the file does not say."""
    settings = _mapping("tokenizer", content.get("tokenizer") or {})
    source = content.get("tokenizer_source")
    if settings and source:
        raise ValueError("tokenizer and tokenizer_source cannot both be given")
    if changed := sorted(key for key in settings if key != "source" and settings[key]):
        raise ValueError(f"tokenizer.{changed[0]} cannot be used: merges here keep every embedding as it is")
    source = settings.get("source", "union") if settings else source
    return None if source is None else str(Reference.parse(source))


def _chat_template(value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or "{" not in value):
        raise ValueError(
            f"chat_template={value!r:.60} cannot be used: give the text of a Jinja template, or leave it out to keep "
            "that of the tokenizer"
        )
    return value


def _mapping(at: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{at} must be keys and values, got {value!r:.100}")
    return dict(value)


def _list(at: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{at} must be a list of at least one, got {value!r:.100}")
    return value
