"""What a cell needs of this machine and of its bases, asked before its first stage runs."""

import logging
from collections.abc import Iterable, Mapping

from paft.chat.standalone import template_of, tokenizer_folder
from paft.chat.vocabulary import refuse_other_vocabulary
from paft.config import ALL_LINEAR, EvaluateConfig, ModelConfig, RunConfig, TakenKind, TrainerConfig
from paft.delta.adapter import describe_adapter
from paft.delta.checkpoint import pair_tensors
from paft.files.fingerprint import digest
from paft.files.hub import folder_of
from paft.graph.configs import MergeStage, TakenStage
from paft.graph.stage import Stage, canonical
from paft.merge.origin import base_by_another_name
from paft.store.store import Store

log = logging.getLogger("paft")

HIGHEST_OF_FULL = 1e-4
"""Learning rate above which full fine-tuning of a language model is more likely to spoil it than to teach it."""


def before_stages(config: RunConfig, missing: Iterable[Stage]) -> None:
    """Raise `ValueError` for what the `missing` stages would fail of, be it hours later: no GPU, a base that cannot be
    had, `lora.target_modules` that the base has not."""
    stages = list(missing)
    forwarding = [stage for stage in stages if stage.kind.runs_base]
    if forwarding:
        require_devices(config.trainer)
    models = {stage.config.model.name: stage.config.model for stage in stages}
    for model in models.values():
        trained = (s for s in stages if s.kind.trains and s.config.model.name == model.name)
        adapted = {stage.name: stage.config.branch for stage in trained if not stage.config.branch.is_full}
        targets = {name: branch.lora.target_modules for name, branch in adapted.items()}
        require_base(model, targets, offline=config.offline)
    for stage in (stage for stage in stages if stage.kind.trains and stage.config.branch.is_full):
        warn_of_rate(stage.name, stage.config.branch.lr)
    for merge in (stage for stage in stages if stage.name == "merge"):
        branches = {name: stage.config for name, stage in merge.inputs.items()}
        taken = {name: of for name, of in branches.items() if isinstance(of, TakenStage)}
        require_taken(taken, offline=config.offline)
        require_template(merge.config, taken, alone=len(taken) == len(branches), offline=config.offline)


def warn_of_rate(branch: str, lr: float) -> None:
    """Say so where all weights are to be trained with a learning rate that is one of LoRA's by its size."""
    if lr > HIGHEST_OF_FULL:
        log.warning(
            "%s.lr=%g is high for %s.tuning=full, which usually takes 1e-6 to 5e-5; set %s.lr",
            branch,
            lr,
            branch,
            branch,
        )


def refuse_columns_of(cells: Iterable[tuple[RunConfig, Stage]]) -> None:
    """`refuse_columns` of every unfinished cell of a grid, before the first one trains."""
    unfinished = [
        config.evaluate for config, cell in cells if not Store(config.store, verify=False).complete(cell)
    ]
    refuse_columns({digest(canonical(evaluate, whole=True)): evaluate for evaluate in unfinished}.values())


def refuse_columns(evaluations: Iterable[EvaluateConfig]) -> None:
    """Raise `ValueError` for a column of a table that lm-eval cannot fill."""
    for evaluate in evaluations:
        from paft.evaluate.columns import columns_of, manager_for  # lm-eval

        columns_of(evaluate, manager_for(evaluate))


def require_columns(evaluate: EvaluateConfig) -> None:
    """Raise `ValueError` for a column that lm-eval cannot fill, and for items that cannot be had or read."""
    from paft.evaluate.columns import columns_of, manager_for, require_items

    manager = manager_for(evaluate)
    columns_of(evaluate, manager)
    require_items(evaluate, manager)


def require_taken(branches: Mapping[str, TakenStage], *, offline: bool) -> None:
    """Raise `ValueError` for a taken branch that is no change of its base; names, shapes and tokens are looked at."""
    folders = {}
    for branch, config in branches.items():
        from paft.model.base import base_folder

        base = base_folder(config.model, offline=offline)
        folder = folder_of(config.path or config.hub, offline=offline)
        folders[branch] = folder
        if config.kind is TakenKind.adapter and (said := base_by_another_name(base, branch, folder)):
            log.info(said)
        refuse_other_vocabulary(base, folders)
        if config.kind is TakenKind.adapter:
            describe_adapter(folder, base)
        else:
            pair_tensors(base, folder)


def require_template(
    merge: MergeStage, branches: Mapping[str, TakenStage], *, alone: bool, offline: bool
) -> None:
    """Raise `ValueError` for a taken adapter of another chat template than the branch it is to be merged with.

    Where no branch is trained (`alone`), say that the result is evaluated in another one than it was trained in; so of
    a whole model.
    """
    folders = {of.path or of.hub: folder_of(of.path or of.hub, offline=offline) for of in branches.values()}
    adapters = [folders[of.path or of.hub] for of in branches.values() if of.kind is TakenKind.adapter]
    brought = tokenizer_folder(adapters)
    models = [f for f in folders.values() if f not in adapters and template_of(f) is not None]
    if brought is None and not models:
        return
    from paft.chat.template import with_bos
    from paft.model.base import base_folder, load_tokenizer

    base = base_folder(merge.model, offline=offline)
    trusted = merge.model.trust_remote_code
    template = with_bos(load_tokenizer(base, merge.template, trust_remote_code=trusted))
    for model in [model for model in models if template_of(model) != template]:
        log.warning(
            "%s has another chat template than data.template=%s, in which the merged model is evaluated and written",
            model, merge.template.value,
        )  # fmt: skip
    if brought is None or template_of(brought) == template:
        return
    said = f"{brought} was trained with another chat template than data.template={merge.template.value}"
    if not alone:
        raise ValueError(
            f"{said}, in which the other branch would be trained: no merge of them answers in either. Set "
            "data.template to the adapter's, or remove its tokenizer files if they are not what it was trained with"
        )
    log.warning("%s, in which the result is evaluated; the merged folder has the adapter's", said)


def require_devices(trainer: TrainerConfig) -> None:
    """Raise `ValueError` unless PyTorch sees the GPUs that a run is to use on this node."""
    if trainer.accelerator != "gpu":
        return
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus < trainer.devices:
        there = "no GPU" if gpus == 0 else f"{gpus} GPU{'s' * (gpus > 1)}"
        instead = f"trainer.devices={gpus}" if gpus else "trainer=cpu"
        raise ValueError(
            f"trainer.accelerator=gpu trainer.devices={trainer.devices} needs as many GPUs, and PyTorch "
            f"{torch.__version__} sees {there} here; write {instead}, or run it where there are (on a cluster: "
            "-m hydra/launcher=slurm, docs/cluster.md)"
        )


def require_base(model: ModelConfig, targets: dict[str, list[str]], *, offline: bool) -> None:
    """Raise `ValueError` for a base that cannot be had, or that has no layer of a name in `targets`.

    Layers are those of the model without its weights, as its config.json describes it.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from paft.model.base import base_folder, base_settings
    from paft.model.targets import resolved_targets

    folder = base_folder(model, offline=offline)
    if not targets:
        return
    settings = base_settings(folder, model)
    try:
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(settings, trust_remote_code=model.trust_remote_code)
    except Exception:
        return  # `paft.proof` says what such a base lacks
    for branch, names in targets.items():
        found = resolved_targets(empty, names, at=f"{branch}.lora.target_modules")
        if found != names and names != [ALL_LINEAR]:
            log.info(
                "%s has other layers than lora.target_modules: the %s branch adapts %s",
                model.title,
                branch,
                ", ".join(found),
            )
