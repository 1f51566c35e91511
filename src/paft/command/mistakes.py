"""Which errors are mistakes of the user's, and how they are said."""

import errno
from dataclasses import fields, is_dataclass

from hydra.errors import HydraException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from paft.command.choices import with_setting
from paft.config import RunConfig
from paft.files.unwritable import DENIED


def is_mistake(error: BaseException) -> bool:
    """A ValueError of our own, or Hydra's, is a wrong input, and so is a folder that may not be written or is none;
    an error from inside a library is a failure."""
    if isinstance(error, HydraException | OmegaConfBaseException):
        return True  # before the next: Hydra's error for a choice that does not exist is an OSError too
    if isinstance(error, OSError):
        return error.errno in (*DENIED, errno.ENOTDIR, errno.EEXIST) and error.filename is not None
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
        if line and not useless and not any(line == said or (" " in line and line in said) for said in lines):
            lines.append(line)
    more = [f"it has: {', '.join(known)}"] if known else []
    return "\n       ".join([*lines, *more, *_elsewhere(chain)])


GRID_OF_BASES = (
    "a grid over several bases of your own is model=local model.path=DIR1,DIR2, or a file for each in a folder "
    "of yours (--config-dir FOLDER, with FOLDER/model/NAME.yaml; docs/data.md, Your base model)"
)
SEARCHED = (
    "what a search varies is given as its own key: 'lambda=interval(1e-5,1e-3)' "
    "(docs/study.md, A search of your own)"
)


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
