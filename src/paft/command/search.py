"""A search with Hydra's Optuna sweeper: what a trial may do, and what is said when it ends."""

import logging
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from paft.command.compose import to_config
from paft.config import EvaluateSplit, RunConfig
from paft.graph.stage import Stage
from paft.store.store import Store

TRAINED = ("sft", "preference")
log = logging.getLogger("paft")


def refuse_training(config: RunConfig, cell: Stage) -> None:
    """Raise `ValueError` naming the branches that `no_training=true` would have to train."""
    missing = [s for s in Store(config.store, verify=False).missing(cell) if s.name in TRAINED]
    if config.no_training and missing:
        weight, branches = config.sft.l1.weight, ", ".join(f"{s} (seed {config.seed})" for s in missing)
        raise ValueError(
            f"no_training=true, and the store {config.store} has no {branches} for lambda={weight:g}; "
            f"train it first with the same settings, as in python train.py lambda={weight:g} seed={config.seed} ..."
        )


def objective(config: RunConfig, folder: Path) -> float:
    """The value a job returns to Hydra: `evaluate.objective` of a finished evaluate folder, larger is better."""
    from paft.evaluate.results import Results

    return Results.read(folder).objective(config.evaluate.objective)


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
    found = OmegaConf.load(path)
    if "best_params" not in found:
        return None
    given = [word for word in config.hydra.overrides.task if not _is_searched(word, found.best_params)]
    best = [f"{name}={value}" for name, value in found.best_params.items()]
    words = [*given, *(word for word in best if word not in given)]
    log.info("best of the search: %.4f with %s", found.best_value, " ".join(best))
    log.info("score it on the test split: python train.py %s evaluate.split=test", " ".join(words))
    return to_config(hydra.compose("train", overrides=words))


def _is_searched(word: str, params: DictConfig) -> bool:
    return word.split("=", 1)[0].lstrip("+") in params
