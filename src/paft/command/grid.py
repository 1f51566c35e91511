"""The cells of a multirun before any of them runs: their words, their configs, and what does not go together."""

from collections.abc import Iterator, Sequence

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from paft.command.compose import to_config
from paft.command.mistakes import explain
from paft.config import RunConfig
from paft.private import BasicSweeper


def is_grid(sweeper: DictConfig) -> bool:
    """Whether all cells are known beforehand; a search chooses each by the scores of others."""
    return str(sweeper._target_).endswith((".BasicSweeper", ".GridsSweeper"))


def expand(config: DictConfig) -> list[tuple[str, ...]]:
    """Every combination of a multirun's overrides, as Hydra's basic sweeper or ours takes them apart."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    given = OmegaConf.to_container(config.hydra.overrides.task)
    params = OmegaConf.to_container(config.hydra.sweeper.params) if config.hydra.sweeper.get("params") else {}
    assert isinstance(given, list) and isinstance(params, dict)
    overrides = OverridesParser.create().parse_overrides([*(f"{k!s}={v}" for k, v in params.items()), *given])
    if grids := OmegaConf.to_container(config.hydra.sweeper.get("grids") or OmegaConf.create()):
        from hydra_plugins.paft_grids.grids import union

        return [tuple(words) for words in union(grids, overrides)]  # type: ignore[arg-type]
    (batch,) = BasicSweeper.split_arguments(overrides, max_batch_size=None)
    return [tuple(combination) for combination in batch]


def cell_config(config: DictConfig, number: int, words: Sequence[str]) -> RunConfig:
    """The typed config of one cell of a multirun.

    Raises `ValueError` naming the cell and, where its experiment sets what the chosen group has not, both of them.
    """
    try:
        return to_config(hydra.compose("train", overrides=list(words)))
    except HydraException as error:
        told = [
            explain(error),
            f"in cell #{number} {' '.join(words)}",
            *_grid_conflicts(config, words, error),
        ]
        raise ValueError("\n".join(told)) from None  # it is told whole


def _grid_conflicts(config: DictConfig, words: Sequence[str], error: HydraException) -> Iterator[str]:
    """What an experiment's grids set and the given choice of its group lacks, in the words of the command line."""
    given = list(config.hydra.overrides.task)
    experiment = next((word for word in given if word.startswith("experiment=")), "this experiment")
    for word in words:
        key = word.partition("=")[0]
        choice = f"{key.partition('.')[0]}="
        chosen = next((w for w in given if w.startswith(choice)), None)
        if word not in given and chosen and f"'{key}'" in str(error):
            yield f"{key} is set by {experiment} and does not go with {chosen}: leave {chosen} out"
