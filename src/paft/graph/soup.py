"""What is said of a soup: its trainings, and in what they differ; importing this module loads no torch."""

from paft.config import SFTConfig
from paft.graph.configs import BranchStage, GreedySoupStage, SoupStage
from paft.graph.stage import Stage


def members(soup: Stage[SoupStage]) -> dict[str, Stage[BranchStage]]:
    """The trainings among a soup's inputs, in order."""
    return {name: stage for name, stage in soup.inputs.items() if stage.name == soup.name}


def settings(training: Stage[BranchStage]) -> dict[str, str]:
    """What trainings of a soup may differ in."""
    branch = training.config.branch
    weight = {"lambda": f"{branch.l1.weight:g}"} if isinstance(branch, SFTConfig) else {}
    return weight | {"seed": str(training.config.seed)}


def words(training: Stage[BranchStage]) -> str:
    """A training among those of its soup, as `lambda=0.0001 seed=0`."""
    return " ".join(f"{name}={value}" for name, value in settings(training).items())


def varied(soup: Stage[SoupStage]) -> dict[str, str]:
    """The settings in which the trainings of a soup do differ, each with its values: {"seed": "0, 1, 2"}."""
    every = [settings(training) for training in members(soup).values()]
    values = {name: dict.fromkeys(each[name] for each in every) for name in every[0]}
    return {name: ", ".join(given) for name, given in values.items() if len(given) > 1}


def title(soup: Stage[SoupStage]) -> str:
    """`mean of 3 trainings, seeds 0, 1, 2`"""
    greedy = isinstance(soup.config, GreedySoupStage)
    kind, by = ("greedy mean", " by validation rows") if greedy else ("mean", "")
    differ = [f"{name}s {values}" for name, values in varied(soup).items()]
    return ", ".join([f"{kind} of {len(members(soup))} trainings{by}", *differ])
