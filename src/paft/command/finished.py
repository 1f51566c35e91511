"""A cell by the words of its command, and its model out of the store: what `paft.export` and `paft.chat` begin with."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from paft.command.choices import CONF
from paft.command.compose import register_schemas, to_config, with_new_tasks
from paft.command.mistakes import explain
from paft.command.pipeline import context_of, drop_merged
from paft.command.words import train_command
from paft.config import RunConfig
from paft.graph.build import build
from paft.graph.stage import Stage
from paft.store.store import Store


@dataclass(frozen=True)
class FinishedCell:
    """One cell, by the overrides that `train.py` was given for it."""

    words: Sequence[str]
    config: RunConfig

    @cached_property
    def stage(self) -> Stage:
        """Its evaluate stage."""
        return build(self.config)

    @cached_property
    def store(self) -> Store:
        return Store(self.config.store)

    @property
    def command(self) -> str:
        """What makes it."""
        return train_command(self.words)

    @property
    def base(self) -> Path:
        """The folder of its base."""
        from paft.model.base import base_folder  # torch: a help or a refusal needs none

        return base_folder(self.config.model, offline=self.config.offline)

    def require_scores(self) -> Path:
        """The folder of its evaluation. Raises `ValueError` with the command that makes it."""
        if not self.store.complete(self.stage):
            raise ValueError(
                f"{self.store.root} does not hold this cell; `{self.command}` makes it (the words must be those it was "
                "trained and evaluated with)"
            )
        return self.store.path(self.stage)

    @contextmanager
    def model(self) -> Iterator[Path]:
        """The folder of its merged model, or of the base where nothing was merged.

        One that merge.keep=false has deleted is merged again, and with merge.keep=false goes again after. Raises
        `ValueError` with the command that trains what is not there.
        """
        merge = self.stage.inputs.get("model")
        if merge is None:
            yield self.base
            return
        missing = self.store.missing(merge)
        if any(stage.key != merge.key for stage in missing):
            lacking = ", ".join(stage.name for stage in missing)
            raise ValueError(f"{self.store.root} lacks {lacking} of this cell; `{self.command}` makes it")
        self.store.ensure(merge, context_of(self.config, self.store, self.stage).run)
        yield self.store.path(merge)
        if missing and not self.config.merge.keep:
            drop_merged(self.store, self.stage)


def finished_cell(words: Sequence[str]) -> FinishedCell:
    """The cell of these overrides. Raises `ValueError` for what cannot be composed, and for more cells than one."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("paft").setLevel(logging.INFO)
    register_schemas()
    try:
        _refuse_several(words)
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            config = to_config(hydra.compose("train", overrides=with_new_tasks([*words])))
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explain(error)) from None
    return FinishedCell(words, config)


def _refuse_several(words: Sequence[str]) -> None:
    for word, override in zip(words, OverridesParser.create().parse_overrides([*words]), strict=True):
        if override.is_sweep_override():
            raise ValueError(f"{word} is a list of cells; name one of them")
