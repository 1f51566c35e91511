"""What the lineage in a stage.json says: keys, families of seeds, recipes. It needs no other folder of the store."""

from collections.abc import Mapping
from typing import Any

from paft.files.fingerprint import digest
from paft.graph.configs import GreedySoupStage, SoupStage, TakenStage
from paft.graph.stages import TRAINED

Identity = Mapping[str, Any]
"""`Stage.identity`: stage, version, config, and the identities of the inputs."""


def key_of(identity: Identity) -> str:
    """`Stage.key` of the stage with this identity."""
    return digest({**identity, "inputs": {name: key_of(stage) for name, stage in identity["inputs"].items()}})


def branches(identity: Identity) -> dict[str, Identity]:
    """The branches behind an evaluation, `sft` and `preference`, as far as there are any."""
    merge = identity["inputs"].get("model")
    return {name: stage for name, stage in merge["inputs"].items() if name in TRAINED} if merge else {}


def trainings(branch: Identity) -> list[Identity]:
    """Those behind a branch: one, or of a soup several, which differ by lambda and seed; none where it was taken."""
    if branch["config"].get("type") == SoupStage.__name__ or is_greedy(branch):
        return [stage for stage in branch["inputs"].values() if stage["stage"] == branch["stage"]]
    return [] if is_taken(branch) else [branch]


def is_greedy(branch: Identity) -> bool:
    """Whether it is the mean of those of its trainings that validation rows chose."""
    return branch["config"].get("type") == GreedySoupStage.__name__


def lambdas(branch: Identity) -> list[float]:
    """The L1 weights of the trainings behind a branch, each once; none of a preference branch."""
    penalties = (training["config"]["branch"].get("l1") for training in trainings(branch))
    return list(dict.fromkeys(float(l1["weight"]) for l1 in penalties if l1))


def is_taken(identity: Identity) -> bool:
    """Whether a branch was taken from elsewhere, not trained."""
    return identity["config"].get("type") == TakenStage.__name__


def family(identity: Identity) -> str:
    """What the cells that differ by their seed alone have in common: a key of the lineage without seeds.

    Seeds of data and of the evaluation stay: other rows and other items are another cell. A seed of the drop masks
    stays unless it follows the training's, as it does by default.
    """
    return digest(_seedless(identity, seed_of(identity)))


def _seedless(identity: Identity, seed: int | None) -> dict[str, Any]:
    config = dict(identity["config"])
    if identity["stage"] in TRAINED or config.get("seed") == seed:
        config.pop("seed", None)
    for part in ("only", "method"):  # of a reference, of a merge
        if isinstance(config.get(part), dict):
            drawn = {name for name in ("seed", "prune_seed") if config[part].get(name) == seed}
            config[part] = {name: value for name, value in config[part].items() if name not in drawn}
    inputs = {name: _seedless(stage, seed) for name, stage in identity["inputs"].items()}
    return {**identity, "config": config, "inputs": inputs}


def seed_of(identity: Identity) -> int | None:
    """The seed the lineage was trained with: of a branch that is no soup, if there is one."""
    if "branch" in identity["config"] and "seed" in identity["config"]:
        return int(identity["config"]["seed"])
    inputs = sorted(identity["inputs"].values(), key=lambda stage: len(trainings(stage)) > 1)
    return next((seed for seed in map(seed_of, inputs) if seed is not None), None)


def recipe(branch: Identity) -> str:
    """What the branches that differ by lambda and seed alone have in common: settings, data, and how many trainings; of
    a soup of several lambdas also these."""
    several, weights = trainings(branch), lambdas(branch)
    soup: dict[str, Any] = {"soup": len(several)} if len(several) > 1 else {}
    soup |= {"lambdas": weights} if len(weights) > 1 else {}
    soup |= {"greedy": branch["config"]["num_rows"]} if is_greedy(branch) else {}
    stage = several[0]
    trained = dict(stage["config"]["branch"])
    trained["l1"] = {name: value for name, value in trained.get("l1", {}).items() if name != "weight"}
    settings = {**stage["config"], "branch": trained, "seed": None, "data": key_of(stage["inputs"]["data"])}
    return digest(settings | soup)
