"""From a typed config to the graph of stages; importing this module loads no torch.

            ┌─ data[sft] ─────────────────────────► sft (+ lambda * |delta|_1) ─┐
    config ─┤                                                                   ├─► merge ─► evaluate
            └─ data[preference] ─┬──────────────► preference (DPO | ORPO) ──────┘
                                 └─► reference ───┘ (DPO)

Each stage gets its own slice of the config and nothing else. `reference` holds the base model's log-probabilities
of the pairs, whatever the DPO trainings that share it do with them. Baselines are graphs, not code paths: `sft` and
`preference` apply one delta, `sequential` gives preference one more input and applies both, `base` has none.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from paft.config import (
    BranchConfig,
    DataConfig,
    DemoSource,
    FileSource,
    HubModel,
    LocalModel,
    MergeConfig,
    ModelConfig,
    Paradigm,
    PreferenceConfig,
    RunConfig,
    SFTConfig,
    Source,
    Template,
)
from paft.config.data import DEMO_VERSION
from paft.files.fingerprint import content_sha256, file_sha256, folder_sha256
from paft.files.jsonfile import read_object
from paft.graph.callbacks import identities
from paft.graph.configs import (
    Apply,
    BranchStage,
    DataStage,
    EvaluateStage,
    FirstSteps,
    MergeStage,
    ReferenceStage,
)
from paft.graph.judged import judged, with_questions
from paft.graph.stage import Stage
from paft.graph.stages import STAGES
from paft.graph.tasks import with_fingerprints

RIGHT_FROM_THE_START = ("llama", "mistral", "qwen2", "qwen3")
"""Architectures of local bases whose stages keep the numbers above; see `_version`."""


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
    merge = _stage("merge", MergeStage(released, method, template), **adapters)
    inputs = {"model": merge}
    return _stage("evaluate", evaluate, **inputs, **held_out, **judged(evaluate, config.judge, inputs))


def _held_out(config: RunConfig, model: ModelConfig) -> dict[str, Stage]:
    """The data stages whose held-out rows are items of a task: `sft_data`, `preference_data`."""
    branches = dict.fromkeys(task.rows.value for task in config.evaluate.tasks.values() if task.rows)
    return {f"{branch}_data": _data(branch, config.data, model) for branch in branches}


def _adapters(config: RunConfig, model: ModelConfig) -> tuple[dict[str, Stage], MergeConfig]:
    apply = Apply(keep=config.merge.keep, dtype=config.merge.dtype)
    if config.paradigm is Paradigm.base:
        return {}, apply
    if config.paradigm is Paradigm.preference:  # nothing of the other branch is read, its files included
        return {"preference": _branch("preference", config, model)}, apply
    sft = _branch("sft", config, model)
    match config.paradigm:
        case Paradigm.sft:
            return {"sft": sft}, apply
        case Paradigm.sequential:
            return {"sft": sft, "preference": _branch("preference", config, model, sft=sft)}, apply
        case Paradigm.parallel:
            return {"sft": sft, "preference": _branch("preference", config, model)}, config.merge


def _branch(name: str, config: RunConfig, model: ModelConfig, **inputs: Stage) -> Stage:
    branch: BranchConfig = getattr(config, name)
    if isinstance(branch, SFTConfig):
        branch = replace(branch, l1=branch.l1.in_effect())  # plain SFT is one training, however it is put
    inputs = {"data": _data(name, config.data, model.as_released()), **inputs}
    if isinstance(branch, PreferenceConfig) and branch.has_reference_stage:
        inputs["reference"] = _stage(
            "reference", ReferenceStage(model, _first_steps(branch, config.seed)), **inputs
        )
    callbacks = identities(config.callbacks)
    return _stage(name, BranchStage(model, branch, config.data.template, config.seed, callbacks), **inputs)


def _first_steps(branch: BranchConfig, seed: int) -> FirstSteps | None:
    """Which rows a training cut short reads; one by epochs reads all, so that every seed may share them."""
    return FirstSteps(branch.max_steps, branch.global_batch_size, seed) if branch.max_steps else None


def _data(name: str, data: DataConfig, model: ModelConfig) -> Stage:
    source: Source = getattr(data, name)
    generator = DEMO_VERSION if isinstance(source, DemoSource) else None
    return _stage("data", DataStage(name, model, data.template, source, _files(source), generator))


def _stage(name: str, config: object, **inputs: Stage) -> Stage:
    return Stage(name, _version(name, config), config, inputs)


def _version(name: str, config: Any) -> int:
    """The stage's number, one higher where only some configs' results have changed since it was given.

    - Rows of files and hubs: fields of a row were lost, ends of answers doubled. Rows in a brought tokenizer's own
      template: an answer was tokenised without what precedes it.
    - Trainings with LoRA dropout: masks depended on the micro-batch.
    - What runs a local base that is none of `RIGHT_FROM_THE_START`: heads lost their bias or scale, texts leaked into
      each other through convolutions.
    - Evaluations of brought bases in templates that may end a turn with another token than the EOS: answers ran on.
    """
    template, brought = getattr(config, "template", None), isinstance(config.model, LocalModel | HubModel)
    match config:
        case DataStage():
            changed = not isinstance(config.source, DemoSource) or (
                brought and template is Template.tokenizer
            )
        case BranchStage():
            changed = config.branch.lora.dropout > 0
        case EvaluateStage():
            changed = brought and template is not Template.zephyr
        case _:
            changed = False
    if STAGES[name].runs_base and isinstance(config.model, LocalModel):
        changed = changed or not _was_right(Path(config.model.path))
    return STAGES[name].version + changed


def _was_right(folder: Path) -> bool:
    """Whether a base's results were its own before bases were proved."""
    settings = read_object(folder / "config.json")
    dropout = any(
        "drop" in key and isinstance(value, int | float) and value for key, value in settings.items()
    )
    return settings.get("model_type") in RIGHT_FROM_THE_START and not dropout


def _files(source: Source) -> dict[str, str]:
    if not isinstance(source, FileSource):
        return {}
    paths = {"train": source.path, "validation": source.validation_path}
    return {split: file_sha256(Path(path)) for split, path in paths.items() if path}


def refuse_changed(config: DataStage) -> None:
    """Raise `ValueError` naming a local file that is not the one the stage's key was made from."""
    if not isinstance(config.source, FileSource):
        return
    paths = {"train": config.source.path, "validation": config.source.validation_path}
    for split, planned in config.files.items():
        path = Path(paths[split] or "")
        now = content_sha256(path)
        if now != planned:
            raise ValueError(
                f"{path} changed after this run was planned: its sha256 was {planned[:12]}, "
                f"now {f'it is {now[:12]}' if now else 'the file is gone'}. No stage was made from it; "
                "put the old file back, or give the same command again to run with the new one"
            )


def _with_fingerprint(model: ModelConfig) -> ModelConfig:
    if isinstance(model, LocalModel):
        return replace(model, sha256=folder_sha256(Path(model.path)))
    return model


def lambda_of(stage: Stage) -> float | None:
    """The L1 weight of the SFT stage in this graph, or None where there is none."""
    weights = [s.config.branch.l1.weight for s in stage.walk() if s.name == "sft"]
    return weights[0] if weights else None


def unique(targets: Iterable[Stage]) -> list[Stage]:
    """Every stage of several graphs, inputs first, shared ones once."""
    return list({s.key: s for target in targets for s in target.walk()}.values())
