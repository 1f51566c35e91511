"""A search with Hydra's Optuna sweeper: what a trial may do, and what is said when it ends."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import hydra
from hydra.conf import HydraConf
from omegaconf import DictConfig, OmegaConf

from paft.command.choices import field_at, with_setting
from paft.command.compose import to_config
from paft.command.words import config_folders, one_cell, train_command
from paft.config import EvaluateSplit, RunConfig
from paft.graph.stage import Stage
from paft.store.store import Store

log = logging.getLogger("paft")


def refuse_training(config: RunConfig, cell: Stage, command: Callable[..., str]) -> None:
    """Raise `ValueError` naming the branches that `no_training=true` would have to train.

    `command` gives the command that runs this cell with changes, as `no_training=false`.
    """
    missing = [s for s in Store(config.store, verify=False).missing(cell) if s.kind.trains]
    if config.no_training and missing:
        weight, branches = config.sft.l1.weight, ", ".join(f"{s} (seed {config.seed})" for s in missing)
        raise ValueError(
            f"no_training=true, and the store {config.store} has no {branches} for lambda={weight:g}; "
            f"train it first, with this cell: {command('no_training=false')}"
        )


def trial_command(job: HydraConf) -> Callable[..., str]:
    """Changes of this job's overrides -> the command that runs it with them, alone."""
    folders = config_folders(OmegaConf.create({"hydra": job}))
    return lambda *changes: train_command(one_cell(job.overrides.task, *changes), folders)


def objective(config: RunConfig, folder: Path) -> float:
    """The value a job returns to Hydra: `evaluate.objective` of a finished evaluate folder, larger is better."""
    from paft.evaluate.results import Results

    return Results.read(folder).objective(config.evaluate.objective)


def refuse_search(sweeper: DictConfig, one: RunConfig, given: Sequence[str]) -> None:
    """Raise `ValueError` for a search that cannot be meant, given a cell with the settings its trials share."""
    refuse_direction(sweeper)
    refuse_searched(sweeper.get("params"), one, given)


def refuse_direction(sweeper: DictConfig) -> None:
    """Raise `ValueError` for a search that would look for the worst cell: what a cell returns is better when larger."""
    asked = sweeper.get("direction")
    direction = getattr(asked, "name", asked)
    if direction != "maximize":
        raise ValueError(
            f"hydra.sweeper.direction must be maximize, got {direction}: what a cell returns of evaluate.objective "
            "is better when larger; add hydra.sweeper.direction=maximize"
        )


def refuse_searched(params: DictConfig | None, one: RunConfig, given: Sequence[str]) -> None:
    """Raise `ValueError` for a key that a search varies and the chosen group of its cells has not."""
    for key in map(str, params or {}):
        group, _, rest = key.partition(".")
        chosen = getattr(one, group, None)
        if rest and chosen is not None and not isinstance(chosen, dict) and not field_at(type(chosen), rest):
            choice = next((word for word in given if word.startswith(f"{group}=")), f"the {group}")
            raise ValueError(
                f"the search varies {key}, which {choice} has not; it is a setting of {', '.join(with_setting(key))}. "
                "Choose one of these, or search other keys (docs/study.md, A search of your own)"
            )


def warn_of_split(config: RunConfig) -> None:
    """What is chosen by the reported items is no longer measured by them."""
    if config.evaluate.split is not EvaluateSplit.validation:
        log.warning(
            "this search chooses by evaluate.split=%s; use evaluate.split=validation, and report the best "
            "with evaluate.split=test",
            config.evaluate.split.value,
        )


def best_trial(config: DictConfig) -> RunConfig | None:
    """The cell of a finished search's best trial, told with the command that scores it on the test split.

    None where the sweeper left no result of one objective.
    """
    path = Path(config.hydra.sweep.dir) / "optimization_results.yaml"
    if not path.is_file():
        return None
    outcome = OmegaConf.load(path)
    if "best_params" not in outcome:
        return None
    given = [word for word in config.hydra.overrides.task if not _is_searched(word, outcome.best_params)]
    best = [f"{name}={value}" for name, value in outcome.best_params.items()]
    words = [*given, *(word for word in best if word not in given)]
    log.info("best of the search: %.4f with %s", outcome.best_value, " ".join(best))
    tested = one_cell(words, "evaluate.split=test")
    log.info("score it on the test split: %s", train_command(tested, config_folders(config)))
    return to_config(hydra.compose("train", overrides=words))


def _is_searched(word: str, params: DictConfig) -> bool:
    return word.split("=", 1)[0].lstrip("+") in params
