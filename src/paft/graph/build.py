"""From a typed config to the graph of stages; importing this module loads no torch.

            ┌─ data[sft] ─────────────────────────► sft (+ lambda * |delta|_1) ─┐
    config ─┤                                                                   ├─► merge ─► evaluate
            └─ data[preference] ─┬──────────────► preference (DPO | ORPO) ──────┘
                                 └─► reference ───┘ (DPO, KTO)

Each stage gets its own slice of the config and nothing else. `reference` holds the base model's log-probabilities
of the answers, whatever the DPO or KTO trainings that share it do with them. Baselines are graphs, not code paths:
`sft` and `preference` apply one delta, `sequential` gives preference one more input and applies both, `base` has
none. A branch that is taken (`sft.adapter`, `sft.checkpoint`) has no data, and is known by its content; one that is a
soup (`sft.soup`) has its trainings for inputs. A merge that looks at data has one more input for each branch,
`statistics` of its rows, or one of both, `coefficients`. An evaluation that compares with the base (`above_base`) has
the base's for an input.
"""

from collections.abc import Iterable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from paft.config import (
    BranchConfig,
    DemoSource,
    FileSource,
    LocalModel,
    MergeConfig,
    ModelConfig,
    Paradigm,
    PreferenceConfig,
    RunConfig,
    SFTConfig,
    SoupKind,
    Source,
    Statistic,
)
from paft.config.data import DEMO_VERSION
from paft.files.fingerprint import content_sha256, folder_sha256
from paft.graph.callbacks import identities
from paft.graph.configs import (
    Apply,
    BranchStage,
    CoefficientsStage,
    DataStage,
    EvaluateStage,
    FirstSteps,
    GreedySoupStage,
    JointRows,
    MergeStage,
    ReferenceStage,
    SoupStage,
    StatisticsStage,
)
from paft.graph.judged import judged, with_questions
from paft.graph.rows import rows_sha256, splits_of
from paft.graph.stage import Stage
from paft.graph.stages import TRAINED
from paft.graph.taken import checkpoints, taken
from paft.graph.tasks import with_fingerprints
from paft.graph.versions import version_of


def build(config: RunConfig) -> Stage:
    """The evaluate stage of the run's cell; everything else hangs off its inputs.

    Raises `ValueError` for a missing data, model or task file, which is read here for its sha256.
    """
    model = _with_fingerprint(config.model)
    released, template = model.as_released(), config.data.template
    evaluate = EvaluateStage(released, template, with_questions(with_fingerprints(config.evaluate)))
    held_out = _held_out(config, released)
    adapters, method = _adapters(config, model)
    if not adapters:
        return _stage("evaluate", evaluate, **held_out, **judged(evaluate, config.judge, {}))
    inputs = adapters | _measured(method, adapters, config, released)
    merge = _stage("merge", MergeStage(released, method, template, checkpoints(adapters)), **inputs)
    merged, beside = {"model": merge}, {}
    if any(task.above_base for task in evaluate.evaluate.tasks.values()):
        beside = {"base": _stage("evaluate", evaluate, **held_out)}
    judges = judged(evaluate, config.judge, merged)
    return _stage("evaluate", evaluate, **merged, **held_out, **beside, **judges)


def _measured(
    method: Any, branches: dict[str, Stage], config: RunConfig, model: ModelConfig
) -> dict[str, Stage]:
    """The stages that measure on training rows what the merge method asks; shared by all merges that ask the same."""
    if method.needs is None:
        return {}
    data = {f"{name}_data": _data(name, config, model) for name in branches}
    if method.needs is Statistic.coefficients:
        names = [f.name for f in fields(CoefficientsStage) if f.name not in ("model", "preference")]
        given = {name: getattr(method, name) for name in names}
        stage = CoefficientsStage(model, config.preference, **given)
        scored = {n: s for n, s in branches["preference"].inputs.items() if n == "reference"}
        return {"coefficients": _stage("coefficients", stage, **branches, **data, **scored)}
    return {
        f"{name}_statistics": _stage(
            "statistics",
            StatisticsStage(model, method.needs, name, method.num_rows, method.seed),
            branch=branch,
            data=data[f"{name}_data"],
        )
        for name, branch in branches.items()
    }


def _held_out(config: RunConfig, model: ModelConfig) -> dict[str, Stage]:
    """The data stages whose held-out rows are items of a task: `sft_data`, `preference_data`."""
    branches = dict.fromkeys(task.rows.value for task in config.evaluate.tasks.values() if task.rows)
    return {f"{branch}_data": _data(branch, config, model) for branch in branches}


def _adapters(config: RunConfig, model: ModelConfig) -> tuple[dict[str, Stage], MergeConfig]:
    # what two deltas alone can have: a common norm, a common space; and a branch that is alone may be pruned
    alone = [f"prune_{branch}" for branch in TRAINED if config.paradigm.value != branch]
    shared = [f.name for f in fields(MergeConfig) if f.name not in ("norm", "space", *alone)]
    apply = Apply(**{name: getattr(config.merge, name) for name in shared})
    branch = partial(
        _branch, config=config, model=model
    )  # of the branches a paradigm does not have nothing is read
    match config.paradigm:
        case Paradigm.base:
            return {}, apply
        case Paradigm.sft | Paradigm.preference:
            return {config.paradigm.value: branch(config.paradigm.value)}, apply
        case Paradigm.joint:
            return {"preference": _joint(config, model)}, apply
        case Paradigm.preference_first:
            preference = branch("preference")
            return {"preference": preference, "sft": branch("sft", preference=preference)}, apply
        case Paradigm.parallel:
            return {"sft": branch("sft"), "preference": branch("preference")}, config.merge
    sft = branch("sft")
    if config.paradigm is Paradigm.expo:
        apply = replace(apply, expo=config.expo.alpha)
    return {"sft": sft, "preference": branch("preference", sft=sft)}, apply


def _joint(config: RunConfig, model: ModelConfig) -> Stage:
    """The preference branch trained on SFT rows too. Raises `ValueError` for a branch that is taken."""
    for name in Paradigm.joint.branches:
        if (branch := getattr(config, name)).taken:
            kind, place = branch.taken
            raise ValueError(
                f"paradigm=joint trains one adapter on the rows of both branches, got {name}.{kind.value}={place}; "
                "leave it out, or set paradigm=parallel"
            )
    alone, sft = _branch("preference", config, model), config.sft
    rows = JointRows(config.joint.sft_weight, sft.global_batch_size, sft.epochs, sft.max_steps)
    data = _data("sft", config, model.as_released())
    return _stage("preference", replace(alone.config, joint=rows), **alone.inputs, sft_data=data)


def _branch(name: str, config: RunConfig, model: ModelConfig, **inputs: Stage) -> Stage:
    branch: BranchConfig = getattr(config, name)
    if branch.taken:
        return _stage(name, taken(name, branch, model.as_released()))
    if branch.soup.stated:
        return _soup(name, config, model, **inputs)
    branch = branch.in_effect()  # plain SFT is one training, however it is put
    inputs = {"data": _data(name, config, model.as_released()), **inputs}
    if isinstance(branch, PreferenceConfig) and branch.has_reference_stage:
        reference = ReferenceStage(model, _first_steps(branch, config.seed), branch.weight_of_tail != 1)
        inputs["reference"] = _stage("reference", reference, **inputs)
    callbacks = identities(config.callbacks)
    return _stage(name, BranchStage(model, branch, config.data.template, config.seed, callbacks), **inputs)


def _soup(name: str, config: RunConfig, model: ModelConfig, **inputs: Stage) -> Stage:
    """The mean of the branch's trainings, or of those among them that validation rows choose; of one, that one. Each is
    a stage that other cells share."""
    branch: BranchConfig = getattr(config, name)
    members: dict[str, Stage] = {}
    for number, (alone, seed) in enumerate(branch.trainings(config.seed)):
        own: dict[str, Any] = {name: alone}
        members[str(number)] = _branch(name, replace(config, seed=seed, **own), model, **inputs)
    if len(members) == 1:
        return members["0"]
    if branch.soup.kind is SoupKind.uniform:
        return _stage(name, SoupStage(model.as_released()), **members)
    data = members["0"].inputs["data"]
    return _stage(name, GreedySoupStage(model, branch.soup.num_rows), **members, data=data, **inputs)


def _first_steps(branch: BranchConfig, seed: int) -> FirstSteps | None:
    """Which rows a training cut short reads; one by epochs reads all, so that every seed may share them."""
    return FirstSteps(branch.max_steps, branch.global_batch_size, seed) if branch.max_steps else None


def _data(name: str, config: RunConfig, model: ModelConfig) -> Stage:
    source: Source = getattr(config.data, name)
    generator = DEMO_VERSION if isinstance(source, DemoSource) else None
    unpaired = name == "preference" and config.preference.rows == "unpaired"
    template, files = config.data.template, _files(source)
    return _stage("data", DataStage(name, model, template, source, files, generator, unpaired))


def _stage(name: str, config: object, **inputs: Stage) -> Stage:
    return Stage(name, version_of(name, config), config, inputs)


def _files(source: Source) -> dict[str, str]:
    if not isinstance(source, FileSource):
        return {}
    return {split: rows_sha256(source, split) for split in splits_of(source)}


def refuse_changed(config: DataStage) -> None:
    """Raise `ValueError` naming local files that are not those the stage's key was made from."""
    if not isinstance(config.source, FileSource):
        return
    for split, planned in config.files.items():
        try:
            now = rows_sha256(config.source, split, content_sha256)
        except ValueError:
            now = ""
        if now != planned:
            raise ValueError(
                f"{', '.join(config.source.names(split))} changed after this run was planned: its sha256 was "
                f"{planned[:12]}, now {f'it is {now[:12]}' if now else 'the file is gone'}. No stage was made from it; "
                "put the old file back, or give the same command again to run with the new one"
            )


def _with_fingerprint(model: ModelConfig) -> ModelConfig:
    if isinstance(model, LocalModel):
        return replace(model, sha256=folder_sha256(Path(model.path)))
    return model


def lambda_of(stage: Stage) -> float | None:
    """The L1 weight of the SFT stage in this graph, or None where there is none."""
    branches = (s.config.branch for s in stage.walk() if isinstance(s.config, BranchStage))
    return next((branch.l1.weight for branch in branches if isinstance(branch, SFTConfig)), None)


def unique(targets: Iterable[Stage]) -> list[Stage]:
    """Every stage of several graphs, inputs first, shared ones once."""
    return list({s.key: s for target in targets for s in target.walk()}.values())
