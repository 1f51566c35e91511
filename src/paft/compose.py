"""From Hydra's composed config to the typed `RunConfig`, with errors a person can act on."""

import errno
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, MissingMandatoryValue, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from paft.callbacks.identity import refuse_unknown
from paft.choices import with_setting
from paft.config import SCHEMAS, RunConfig, require_sound
from paft.report.table import refuse_taken
from paft.store.unwritable import DENIED
from paft.unread import fill, is_in, unread_parts


def register_schemas() -> None:
    """Make every type of `config.SCHEMAS` available to the YAML files in `conf/`."""
    store = ConfigStore.instance()
    for name, schema in SCHEMAS.items():
        store.store(group="schema", name=name, node=schema)
    OmegaConf.register_new_resolver("gpus", _gpus, replace=True)


def _gpus(accelerator: str, devices: int) -> int:
    """`${gpus:...}` in a launcher's file: the GPUs of a node to ask for."""
    return devices if accelerator == "gpu" else 0


def to_config(cfg: DictConfig) -> RunConfig:
    """The typed, range-checked config of one run.

    Raises `ValueError` naming the key, the value received and what is allowed, for a value of the wrong
    type, out of range, or missing though the cell reads it.
    """
    _check_lambda(cfg)
    unread = unread_parts(cfg)
    _require_given(cfg, unread)
    values = OmegaConf.create(
        {k: v for k, v in cfg.items_ex(resolve=False) if k not in ("lambda", "experiment")}
    )
    values._set_parent(cfg)  # so that ${lambda} still resolves
    try:
        OmegaConf.resolve(values)
        typed = OmegaConf.merge(OmegaConf.structured(RunConfig), values)
        assert isinstance(typed, DictConfig)
        _give_missing(typed, unread)
        _refuse_unknown(typed)
        config = OmegaConf.to_object(typed)
    except (OmegaConfBaseException, MissingMandatoryValue) as error:
        raise ValueError(_in_words(error)) from error
    assert isinstance(config, RunConfig)
    require_sound(config)
    refuse_taken(config.evaluate.tasks)
    refuse_unknown(config.callbacks)
    return config


def _check_lambda(cfg: DictConfig) -> None:
    """`lambda` cannot be a dataclass field, so its type is checked by hand, under its own name."""
    value = cfg["lambda"]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"lambda must be a number, at least 0, got {value!r}; for example lambda=1e-4")


def _refuse_unknown(node: DictConfig, at: str = "") -> None:
    """`+merge.foo=1` passes Hydra whatever the type; what no dataclass names would have no effect."""
    schema = OmegaConf.get_type(node)
    names = [f.name for f in fields(schema)] if is_dataclass(schema) else [str(key) for key in node]
    for key in map(str, node):
        if key not in names:
            raise ValueError(
                f"{at}{key} is not a setting; {at.rstrip('.') or 'the root'} has: {', '.join(names)}"
            )
        child = node[key]
        if isinstance(child, DictConfig):
            _refuse_unknown(child, f"{at}{key}.")


def _missing_keys(node: DictConfig, at: str = "") -> Iterator[str]:
    """Every `???`; not what merely refers to one."""
    for name, child in node.items_ex(resolve=False):
        key = str(name)
        if OmegaConf.is_missing(node, key):
            yield f"{at}{key}"
        elif isinstance(child, DictConfig) and not (child._is_none() or child._is_interpolation()):
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


def _in_words(error: Exception) -> str:
    key: Any = getattr(error, "full_key", None) or "config"
    return f"{key}: {str(error).splitlines()[0]}"


def is_mistake(error: BaseException) -> bool:
    """A ValueError of our own, or Hydra's, is a wrong input, and so is a folder that may not be written or is none;
    an error from inside a library is a failure."""
    if isinstance(error, OSError):
        return error.errno in (*DENIED, errno.ENOTDIR, errno.EEXIST) and error.filename is not None
    if isinstance(error, HydraException | OmegaConfBaseException):
        return True
    if not isinstance(error, ValueError):
        return False
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals.get("__name__", "") if trace else ""
    return str(module).startswith(("paft.", "hydra."))


NOISE = ("full_key:", "object_type=", "reference_type=", "Config search path:", "provider=")
"""Starts of lines that Hydra and OmegaConf write for people who debug them."""


def explain(error: BaseException) -> str:
    """What went wrong, down to its cause, and for an unknown key the keys there are and the choices that have it."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    known = _known_keys(chain)
    lines: list[str] = []
    for line in (line.strip() for e in chain for line in str(e).splitlines()):
        useless = line.startswith(NOISE) or (known and line.startswith("To append to your config"))
        if line and not useless and not any(line in said for said in lines):
            lines.append(line)
    more = [f"it has: {', '.join(known)}"] if known else []
    return "\n       ".join([*lines, *more, *_elsewhere(chain)])


GRID_OF_BASES = (
    "a grid over several bases of your own is model=local model.path=DIR1,DIR2, or a file for each in a folder "
    "of yours (--config-dir FOLDER, with FOLDER/model/NAME.yaml; README, Your base model)"
)
SEARCHED = "what a search varies is given as its own key: 'lambda=interval(1e-5,1e-3)' (README, The study)"


def _elsewhere(chain: list[BaseException]) -> list[str]:
    """The choices of the group that do have a key which the chosen one has not."""
    keys = [str(e.full_key) for e in chain if isinstance(e, ConfigKeyError | ConfigAttributeError)]
    owners = {key: with_setting(key) for key in keys}
    said = [f"{key} is a setting of {', '.join(names)}" for key, names in owners.items() if names]
    said += [GRID_OF_BASES] * ("model.path" in keys)
    return said + [SEARCHED] * any("hydra.sweeper.params" in str(e) for e in chain)


def _known_keys(chain: list[BaseException]) -> list[str]:
    """The keys of the place an unknown key was looked for in."""
    for error in chain:
        if isinstance(error, ConfigKeyError | ConfigAttributeError):
            schema = getattr(error, "object_type", None)
            if isinstance(schema, type) and is_dataclass(schema):
                return [f.name for f in fields(schema)]
            if "." not in str(error.full_key):
                return ["lambda", *(f.name for f in fields(RunConfig))]
    return []
