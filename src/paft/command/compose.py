"""From Hydra's composed config to the typed `RunConfig`, with errors a person can act on."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, ListConfig, MissingMandatoryValue, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from paft.command.choices import CONF, ENTRIES
from paft.command.hardware import this_gpu
from paft.command.unread import fill, is_in, unread_parts
from paft.config import ALL_LINEAR, SCHEMAS, RunConfig, require_sound
from paft.graph.callbacks import refuse_unknown
from paft.merge.methods import METHODS
from paft.objectives import OBJECTIVES
from paft.report.table import refuse_taken

UNTYPED = ("lambda", "experiment")
"""Root keys that are no field of `RunConfig`."""
NEW_TASK = re.compile(
    r"(?:\+\+?(?=evaluate\.tasks\.\w+[.=])|(?=evaluate\.tasks\.\w+=\{))evaluate\.tasks\.(\w+)"
)
"""What may add a column of the table on the command line."""
ALL_LINEAR_WORD = re.compile(rf"^(\w+\.lora\.target_modules=)({ALL_LINEAR})$")
"""peft's word for a list of layers, where a list of names is expected."""
OPEN_MAPPING = re.compile(r"data\.\w+\.(?:columns|mix)[.=]")
"""What sets a mapping whose names are the user's own."""


def register_schemas() -> None:
    """Make every type of a config available to the YAML files in `conf/`, and every entry a choice of its group.

    Hydra copies its repository for every config that it composes and every group that `--help` lists, and the store of
    all these types with it, although it copies what it loads from the store once more: one store is enough.
    """
    store = ConfigStore.instance()
    vars(store)["__deepcopy__"] = lambda memo: store
    for name, schema in (SCHEMAS | METHODS | OBJECTIVES).items():
        store.store(group="schema", name=name, node=schema)
    for group, entries in ENTRIES.items():
        for name, schema in entries.items():
            if not (CONF / group / f"{name}.yaml").is_file():
                store.store(group=group, name=name, node=_choice(schema))
    OmegaConf.register_new_resolver("gpus", _gpus, replace=True)
    OmegaConf.register_new_resolver("this_gpu", this_gpu, replace=True)


def _choice(schema: type) -> DictConfig:
    """An entry without a file in `conf/`: its own defaults, and the run's seed where it has one."""
    node = OmegaConf.structured(schema)
    assert isinstance(node, DictConfig)
    if "seed" in node:
        node.seed = "${seed}"
    return node


def _gpus(accelerator: str, devices: int) -> int:
    """`${gpus:...}` in a launcher's file: the GPUs of a node to ask for."""
    return devices if accelerator == "gpu" else 0


def with_new_tasks(words: list[str]) -> list[str]:
    """The words of a command, with `+evaluate.tasks.<column>...`, `evaluate.tasks.<column>={...}`, mappings and
    `all-linear` in a form that Hydra can follow.

    OmegaConf sets no mapping where a config of a stated type belongs, but merges one into such a config; so a new
    column begins empty, and what is said of it is a change. Names that a mapping has not yet are added only by `++`,
    which nobody should have to know.
    """
    words = [ALL_LINEAR_WORD.sub(r"\1[\2]", word) for word in words]
    words = [f"++{word}" if OPEN_MAPPING.match(word) else word for word in words]
    new = [NEW_TASK.match(word) for word in words]
    names = dict.fromkeys(match[1] for match in new if match)
    if not names:
        return words
    first = next(place for place, match in enumerate(new) if match)
    changes = [word.lstrip("+") if match else word for word, match in zip(words, new, strict=True)]
    columns = ",".join(f"{name}:{{}}" for name in names)
    return [*changes[:first], f"++evaluate.tasks={{{columns}}}", *changes[first:]]


def to_config(cfg: DictConfig) -> RunConfig:
    """The typed, range-checked config of one run.

    Raises `ValueError` naming the key, the value received and what is allowed, for a value of the wrong
    type, out of range, or missing though the cell reads it.
    """
    with worded():
        check_lambda(cfg)
        unread = unread_parts(cfg)
        _require_given(cfg, unread)
        typed = _typed(cfg, [str(key) for key in cfg if key not in UNTYPED])
        _give_missing(typed, unread)
        return checked({str(name): _value(typed[name]) for name in typed})


def root_values(cfg: DictConfig, names: Sequence[str]) -> dict[str, Any]:
    """The typed values of these root keys. Raises `ValueError` as `to_config` does, of which this is a part.

    What one is depends on its own resolved content alone.
    """
    with worded():
        typed = _typed(cfg, names)
        return {name: _value(typed[name]) for name in names}


def checked(values: dict[str, Any]) -> RunConfig:
    """The config of typed root values. Raises `ValueError` for one out of range, or that another does not allow."""
    require_sound(values)  # first: what RunConfig says of values that do not go together quotes them
    config = RunConfig(**values)
    refuse_taken(config.evaluate.tasks)
    refuse_unknown(config.callbacks)
    return config


@contextmanager
def worded() -> Iterator[None]:
    """Inside, OmegaConf's errors become a `ValueError` that names the key."""
    try:
        yield
    except (OmegaConfBaseException, MissingMandatoryValue) as error:
        key: Any = getattr(error, "full_key", None) or "config"
        said = f"{key}: {str(error).splitlines()[0]}"
        raise ValueError(
            said.encode(errors="backslashreplace").decode()
        ) from error  # what it quotes may be no text


def _typed(cfg: DictConfig, names: Sequence[str]) -> DictConfig:
    """These root keys resolved, in the types of `RunConfig`."""
    # its parent, so that ${lambda} still resolves
    values = OmegaConf.create({k: v for k, v in cfg.items_ex(resolve=False) if k in names}, parent=cfg)
    OmegaConf.resolve(values)
    typed = OmegaConf.merge(OmegaConf.structured(RunConfig), values)
    assert isinstance(typed, DictConfig)
    _refuse_unknown(typed, names)
    return typed


def _value(node: Any) -> Any:
    return OmegaConf.to_object(node) if isinstance(node, DictConfig | ListConfig) else node


def check_lambda(cfg: DictConfig) -> None:
    """`lambda` cannot be a dataclass field, so its type is checked by hand, under its own name."""
    value = cfg["lambda"]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"lambda must be a number, at least 0, got {value!r}; for example lambda=1e-4")


def _refuse_unknown(node: DictConfig, keys: Sequence[str], at: str = "") -> None:
    """`+merge.foo=1` passes Hydra whatever the type; what no dataclass names would have no effect."""
    schema = OmegaConf.get_type(node)
    names = [f.name for f in fields(schema)] if is_dataclass(schema) else [str(key) for key in node]
    for key in keys:
        if key not in names:
            raise ValueError(
                f"{at}{key} is not a setting; {at.rstrip('.') or 'the root'} has: {', '.join(names)}"
            )
        child = None if OmegaConf.is_missing(node, key) else node[key]
        if isinstance(child, DictConfig):
            _refuse_unknown(child, [*map(str, child)], f"{at}{key}.")


def _missing_keys(node: DictConfig, at: str = "") -> Iterator[str]:
    """Every `???`; not what merely refers to one."""
    for name, child in node.items_ex(resolve=False):
        key = str(name)
        if OmegaConf.is_missing(node, key):
            yield f"{at}{key}"
        elif (
            isinstance(child, DictConfig)
            and not OmegaConf.is_interpolation(node, key)
            and node[key] is not None
        ):
            yield from _missing_keys(child, f"{at}{key}.")


def _require_given(node: DictConfig, unread: list[str]) -> None:
    if keys := [key for key in _missing_keys(node) if not is_in(key, unread)]:
        example = " ".join(f"{key}=..." for key in keys)
        raise ValueError(f"{', '.join(keys)} must be given; add {example} to the command line")


def _give_missing(typed: DictConfig, unread: list[str]) -> None:
    """No object can be made of what is missing; a group that was taken away (`~merge`) shows only in its type."""
    _require_given(typed, unread)
    for key in list(_missing_keys(typed)):
        fill(typed, key)
