"""Every stage there is, each one entry."""

from dataclasses import dataclass

from paft.graph.configs import GreedySoupStage, SoupStage, TakenStage


@dataclass(frozen=True)
class Kind:
    """What all stages of one name have in common."""

    version: int
    """Part of every key. Raise it when results change; golden files tell when they do."""
    module: str
    """Has `run(stage, inputs, out, context)`, which fills the folder `out` and returns the metrics for stage.json.

    Loading it takes seconds. A stage on several devices runs it in every rank; where ranks leave parts behind, the
    module also has `join(out, context)`, which makes one result of them.
    """
    runs_base: bool = False
    trains: bool = False
    on_devices: bool = False
    """On all devices of the trainer, not on one."""


STAGES = {
    "data": Kind(1, "paft.data.stage"),
    "reference": Kind(1, "paft.training.reference", runs_base=True, on_devices=True),
    "sft": Kind(2, "paft.training.stage", runs_base=True, trains=True, on_devices=True),
    "preference": Kind(2, "paft.training.stage", runs_base=True, trains=True, on_devices=True),
    "statistics": Kind(1, "paft.training.statistics"),
    "coefficients": Kind(1, "paft.training.coefficients", runs_base=True),
    "merge": Kind(1, "paft.merge.stage"),
    "generate": Kind(1, "paft.evaluate.generate", runs_base=True),
    "judge": Kind(1, "paft.judge.stage"),
    "evaluate": Kind(1, "paft.evaluate.stage", runs_base=True),
}
OTHERWISE = {
    TakenStage: Kind(1, "paft.training.taken"),
    SoupStage: Kind(1, "paft.training.soup"),
    GreedySoupStage: Kind(1, "paft.training.greedy", runs_base=True),
}
"""Of a branch that is no training itself, whatever its name: taken from elsewhere, or the mean of several."""
TRAINED = tuple(name for name, kind in STAGES.items() if kind.trains)


def kind_of(name: str, config: object) -> Kind:
    """What the stage of this name does with this config."""
    return OTHERWISE.get(type(config)) or STAGES[name]
