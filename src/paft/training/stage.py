"""The `sft` and `preference` stages: data folder in, adapter or delta folder out."""

import logging
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L

from paft.chat.standalone import write_tokenizer
from paft.config import BranchConfig, SFTConfig
from paft.data.tokens import read_preference, read_sft
from paft.delta.adapter import read_adapter
from paft.delta.full import trained_folder
from paft.delta.statistics import measured
from paft.files.fingerprint import text_digest
from paft.files.jsonfile import read_object, write_json
from paft.graph.callbacks import targets, watches
from paft.graph.configs import BranchStage
from paft.graph.stage import Stage, canonical
from paft.graph.stages import TRAINED
from paft.model.adapters import base_fingerprint
from paft.model.base import base_folder, load_tokenizer, tokenizer_fingerprint
from paft.process.interrupt import stop
from paft.proof.record import device_of, proved_paths
from paft.store.context import Context
from paft.tracking.branch import finish_branch
from paft.training.batches import StepLoader, num_steps
from paft.training.checkpoint import last_checkpoint
from paft.training.history import History
from paft.training.joint import JointLoader, JointModule, joint_steps
from paft.training.module import BranchModule
from paft.training.nonfinite import NotFinite, explained
from paft.training.preference import PreferenceModule
from paft.training.recompute import decided
from paft.training.reference import scored
from paft.training.sft import SFTModule
from paft.training.target import missed, reached
from paft.training.throughput import SHOWN, Throughput
from paft.training.trainer import make_trainer

log = logging.getLogger("paft")

MODULES: dict[str, type[BranchModule]] = {"sft": SFTModule, "preference": PreferenceModule}
READERS: dict[str, Callable[[Path, Any], Sequence[Any]]] = {"sft": read_sft, "preference": read_preference}


def run(stage: Stage[BranchStage], inputs: dict[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Train the stage's branch into `out`: `adapter/`, or `delta/` of full fine-tuning, with its tokenizer,
    `sparsity.json`, `history.csv`.

    Continues from a checkpoint in `out/work` where a killed run left one. Returns the metrics for stage.json. Raises
    `ValueError` for a training that ended before its last step, which is no result.
    """
    config = stage.config
    base = base_folder(config.model, offline=context.running.offline)
    context = decided(context, stage, inputs, base)
    tokenizer = load_tokenizer(base, config.template, trust_remote_code=config.model.trust_remote_code)
    fingerprints = {
        "base": base_fingerprint(config.model),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "template": text_digest(str(tokenizer.chat_template)),
    }
    rows = training_rows(stage.name, inputs)
    texts = read_sft(inputs["sft_data"], "train") if config.joint else []
    module = make_module(stage, inputs, base, len(rows), tokenizer.pad_token_id, context, texts=texts)
    throughput, history = Throughput(stage, base, context), History(out, last_checkpoint(out)[0])
    trainer = make_trainer(
        stage, out, context, fingerprints, steps=module.num_steps, throughput=throughput, history=history
    )
    loader = loader_of(module, rows, trainer, stage, texts)
    fit(trainer, module, loader, stage.name, inputs["data"], out, context)
    metrics: dict[str, Any] = validate(
        trainer, module, stage.name, inputs["data"], context.running.trainer.validation_rows
    )
    trained = out / module.backbone.folder
    module.backbone.save(trained, fingerprints)
    metrics |= training_metrics(module, throughput, len(rows))
    if trainer.is_global_zero:
        trusted = config.model.trust_remote_code
        write_tokenizer(tokenizer, base, trained, trust_remote_code=trusted)
        metrics = last_averages(history) | metrics | finish(out, history)
        warn_of_missed_target(config.branch, out)
        finish_branch(stage, out, metrics, context)
    return metrics


def training_rows(branch: str, inputs: dict[str, Path]) -> Sequence[Any]:
    """The training rows, with what the reference says of them where its stage is among the inputs."""
    rows = READERS[branch](inputs["data"], "train")
    return scored(rows, inputs["reference"]) if "reference" in inputs else rows


def make_module(
    stage: Stage[BranchStage],
    inputs: dict[str, Path],
    base: Path,
    num_rows: int,
    pad_id: int,
    context: Context,
    *,
    texts: Sequence[Any] = (),
) -> BranchModule:
    """The branch's module; it loads its model when Lightning asks for it. `texts` are SFT rows of joint training."""
    config = stage.config
    branch, settings = config.branch, context.running.trainer
    steps = num_steps(
        num_rows,
        global_batch_size=branch.global_batch_size,
        epochs=branch.epochs,
        max_steps=branch.max_steps,
    )
    if config.joint:
        steps = max(steps, joint_steps(texts, config.joint))
    return (JointModule if config.joint else MODULES[stage.name])(
        base,
        config,
        settings,
        num_steps=steps,
        pad_id=pad_id,
        deltas=tuple(trained_folder(inputs[name]) for name in TRAINED if name in inputs),
        cpu_offload=context.running.strategy.cpu_offload,
        paths=proved_paths(base, config.model, device_of(settings)),
    )


def loader_of(
    module: BranchModule,
    rows: Sequence[Any],
    trainer: L.Trainer,
    stage: Stage[BranchStage],
    texts: Sequence[Any],
) -> StepLoader | JointLoader:
    """The global batches of all steps; of SFT rows and pairs together in joint training."""
    where = {"seed": module.seed, "rank": trainer.global_rank, "world": trainer.world_size}
    size, joint = module.config.global_batch_size, stage.config.joint
    if joint is None:
        return StepLoader(rows, global_batch_size=size, steps=module.num_steps, **where)
    branch = module.config
    own = num_steps(len(rows), global_batch_size=size, epochs=branch.epochs, max_steps=branch.max_steps)
    return JointLoader(
        StepLoader(
            texts, global_batch_size=joint.global_batch_size, steps=joint_steps(texts, joint), **where
        ),
        StepLoader(rows, global_batch_size=size, steps=own, **where),
    )


def fit(
    trainer: L.Trainer,
    module: BranchModule,
    loader: StepLoader | JointLoader,
    branch: str,
    data: Path,
    out: Path,
    context: Context,
) -> None:
    """All steps, from the last checkpoint in `out` on; raises for a training that is not what it should be."""
    try:
        run_fit(trainer, module, loader, last_checkpoint(out)[1])
    except NotFinite as error:
        raise explained(error, loader, data, out, module.settings.skip_nonfinite_steps) from error
    refuse_unfinished(branch, trainer.global_step, module.num_steps, out, context)


def training_metrics(module: BranchModule, throughput: Throughput, num_rows: int) -> dict[str, Any]:
    """What stage.json says of the training itself."""
    return {
        "steps": module.num_steps,
        "skipped_steps": module.left_out.steps,
        "tokens": int(throughput.total["tokens"]),
        "rows": num_rows,
        "throughput": throughput.summary(),
        "merge_then_evaluate_seconds": module.seconds_elsewhere,
        "rows_left_out_per_epoch": num_rows % module.config.global_batch_size,
    }


def run_fit(
    trainer: L.Trainer, module: BranchModule, loader: StepLoader | JointLoader, checkpoint: Path | None
) -> None:
    """`trainer.fit`, to the last step or not; a `KeyboardInterrupt` in it stops the run as Ctrl-C does."""
    try:
        trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as error:  # of a callback: no command may end well without its result
        if isinstance(error.__context__, KeyboardInterrupt):
            stop(signal.SIGINT)


def refuse_unfinished(branch: str, step: int, steps: int, out: Path, context: Context) -> None:
    """Raise `ValueError` if a training ended before its last step, which a callback can bring about."""
    if step >= steps:
        return
    names = [name for name, spec in context.running.callbacks.items() if not all(map(watches, targets(spec)))]
    saved, checkpoint = last_checkpoint(out)
    start = f"from step {saved}, kept in {checkpoint}" if checkpoint else "from the start"
    raise ValueError(
        f"the {branch} training was stopped at step {step} of {steps} by a callback "
        f"({', '.join(f'callbacks.{name}' for name in names) or 'none of the configuration'}), so there is no result; "
        f"the same command goes on {start}. For fewer steps take the callback away and set {branch}.max_steps"
    )


def validate(
    trainer: L.Trainer, module: BranchModule, branch: str, data: Path, most: int
) -> dict[str, float]:
    """Loss and the other logged averages over the first `most` held-out rows, if the source has some."""
    if not (data / "validation.parquet").is_file() or most == 0:
        return {}
    held_out = READERS[branch](data, "validation")
    rows = [held_out[i] for i in range(min(len(held_out), most))]
    loader = StepLoader(
        rows, global_batch_size=len(rows), steps=1, seed=0, rank=trainer.global_rank, world=trainer.world_size
    )
    (values,) = trainer.validate(module, loader, verbose=False)
    return dict(values)


def warn_of_missed_target(branch: BranchConfig, out: Path) -> None:
    """Say so where the finished delta is not as sparse as the branch's target."""
    if not isinstance(branch, SFTConfig) or branch.l1.target_sparsity is None:
        return
    share = reached(canonical(branch.l1), read_object(out / "sparsity.json"))
    if share is not None and (said := missed(branch.l1.target_sparsity, share)):
        log.warning(said)


def last_averages(history: History) -> dict[str, float]:
    """What was logged of the last step, of a training that a killed run had finished too; its speed aside."""
    return {k: v for k, v in history.last_step().items() if k.startswith("train/") and k[6:] not in SHOWN}


def finish(out: Path, history: History) -> dict[str, Any]:
    """Measure the finished adapter and turn the step log into a CSV."""
    sparsity = measured(read_adapter(trained_folder(out)))
    write_json(out / "sparsity.json", sparsity)
    history.table().to_csv(out / "history.csv", index=False)
    return {
        "sparsity": {
            "mean_over_layers": sparsity["mean_over_layers"],
            "over_elements": sparsity["over_elements"],
        }
    }
