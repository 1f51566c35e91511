"""From Hydra's composed config to the typed `RunConfig`, with errors a person can act on."""

from dataclasses import fields, is_dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, MissingMandatoryValue, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from paft.config import SCHEMAS, RunConfig


def register_schemas() -> None:
    """Make every type of `config.SCHEMAS` available to the YAML files in `conf/`."""
    store = ConfigStore.instance()
    for name, schema in SCHEMAS.items():
        store.store(group="schema", name=name, node=schema)


def to_config(cfg: DictConfig) -> RunConfig:
    """The typed, range-checked config of one run.

    Raises `ValueError` naming the key, the value received and what is allowed, for a value of the wrong
    type, out of range, or missing.
    """
    _check_lambda(cfg)
    values = OmegaConf.create({k: v for k, v in cfg.items_ex(resolve=False) if k not in ("lambda", "experiment")})
    values._set_parent(cfg)  # so that ${lambda} still resolves
    try:
        OmegaConf.resolve(values)
        typed = OmegaConf.merge(OmegaConf.structured(RunConfig), values)
        missing = sorted(OmegaConf.missing_keys(typed))
        if missing:
            raise ValueError(_missing(missing))
        config = OmegaConf.to_object(typed)
    except (OmegaConfBaseException, MissingMandatoryValue) as error:
        raise ValueError(_in_words(error)) from error
    assert isinstance(config, RunConfig)
    return config


def _check_lambda(cfg: DictConfig) -> None:
    """`lambda` cannot be a dataclass field, so its type is checked by hand, under its own name."""
    value = cfg["lambda"]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"lambda must be a number, at least 0, got {value!r}; for example lambda=1e-4")


def _missing(keys: list[str]) -> str:
    example = " ".join(f"{key}=..." for key in keys)
    return f"{', '.join(keys)} must be given; add {example} to the command line"


def _in_words(error: Exception) -> str:
    key: Any = getattr(error, "full_key", None) or "config"
    return f"{key}: {str(error).splitlines()[0]}"


def explain(error: BaseException) -> str:
    """What went wrong, down to its cause, and for an unknown key the keys there are."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    lines = [line for e in chain for line in str(e).strip().splitlines() if not line.strip().startswith("reference_type")]
    text = "\n       ".join(dict.fromkeys(line.rstrip() for line in lines))
    keys = _keys_of(chain)
    return text + (f"\n       it has: {', '.join(keys)}" if keys else "")


def _keys_of(chain: list[BaseException]) -> list[str]:
    for error in chain:
        schema = getattr(error, "object_type", None)
        if isinstance(schema, type) and is_dataclass(schema):
            return [f.name for f in fields(schema)]
    return []
