"""What a cell needs of this machine and of its bases, asked before its first stage runs."""

from collections.abc import Iterable

from paft.config import EvaluateConfig, ModelConfig, RunConfig, TrainerConfig
from paft.files.fingerprint import digest
from paft.graph.stage import Stage, canonical
from paft.graph.stages import STAGES, TRAINED
from paft.store.store import Store


def before_stages(config: RunConfig, missing: Iterable[Stage]) -> None:
    """Raise `ValueError` for what the `missing` stages would fail of, be it hours later: no GPU, a base that cannot be
    had, `lora.target_modules` that the base has not."""
    stages = list(missing)
    forwarding = [stage for stage in stages if STAGES[stage.name].runs_base]
    if forwarding:
        require_devices(config.trainer)
    models = {stage.config.model.name: stage.config.model for stage in stages}
    for model in models.values():
        trained = (s for s in stages if s.name in TRAINED and s.config.model.name == model.name)
        targets = {stage.name: stage.config.branch.lora.target_modules for stage in trained}
        require_base(model, targets, offline=config.offline)


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

    from paft.model.adapters import refuse_unknown_targets
    from paft.model.base import base_folder, base_settings

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
        refuse_unknown_targets(empty, names, at=f"{branch}.lora.target_modules")
