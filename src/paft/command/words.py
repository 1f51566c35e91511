"""The command line as it was given, and commands that the program prints, which run as they stand."""

import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from omegaconf import DictConfig

TAKE_A_VALUE = (
    *("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn"),
    *("--cfg", "-c", "--package", "-p", "--info", "-i", "--experimental-rerun"),
)
"""Hydra's flags that a word follows."""


def flag_first(words: list[str]) -> list[str]:
    """The words with the flags in front, each with its value: argparse takes the overrides in one piece only."""
    flags: list[str] = []
    overrides: list[str] = []
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            overrides.append(word)
            continue
        flags.append(word)
        if word in TAKE_A_VALUE and (value := next(rest, None)) is not None:
            flags.append(value)
    return [*flags, *overrides]


def train_command(words: Iterable[str], folders: Sequence[str] = ()) -> str:
    """`python train.py` with these overrides, quoted for a shell, and with the `--config-dir` folders of this run."""
    started = Path(sys.argv[0])
    script = str(started) if started.name == "train.py" else "train.py"
    flags = [word for folder in folders for word in ("--config-dir", folder)]
    return shlex.join(["python", script, *flags, *words])


def one_cell(words: Iterable[str], *changes: str) -> list[str]:
    """The overrides that run one cell in place of a grid or a search: `words` without those that `changes` replace."""
    last = [*changes, "hydra.mode=RUN"]  # an experiment may ask for a multirun
    replaced = {word.partition("=")[0] for word in last}
    return [*(word for word in words if word.lstrip("+").partition("=")[0] not in replaced), *last]


def config_folders(config: DictConfig) -> list[str]:
    """What `--config-dir` gave to the run whose whole config this is, `hydra` included."""
    sources = config.hydra.runtime.config_sources
    return [str(source.path) for source in sources if source.provider == "command-line"]
