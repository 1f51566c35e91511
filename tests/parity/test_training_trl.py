"""Our three branches against TRL's trainers: the same rows, the same tiny model, the same LoRA weights, float32.

Findings about TRL 1.16, pinned here: its `sigmoid` has no label smoothing (`robust` divides by 1 - 2 eps, unlike
conservative DPO); `ipo` uses per-token means and `hinge` is not scaled, as ours; ORPO averages its likelihood over
each micro-batch, so only one micro-batch per step gives the mean over the global batch that ours always is.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig as PeftLoraConfig
from tiny import (
    MODEL,
    adapter,
    branch,
    distance,
    gradients,
    judged,
    make,
    move,
    pairs,
    run,
    sft_rows,
    whole_batch,
)
from torch import Tensor

from paft.chat.tokens import IGNORE, EncodedAnswer
from paft.config import BranchConfig, LoraConfig, SFTConfig
from paft.data.unpaired import mismatched, split_pairs
from paft.losses import reference_point
from paft.model.base import base_folder, byte_tokenizer
from paft.objectives import CPO, DPO, KTO, ORPO, DPOLoss, FDivergence, KTOLoss, SimPO
from paft.proof.base import load_base
from paft.training.batches import GlobalBatch
from paft.training.module import BranchModule
from paft.training.unpaired import answer_logps

trl = pytest.importorskip("trl")
orpo = pytest.importorskip("trl.experimental.orpo")
cpo = pytest.importorskip("trl.experimental.cpo")

SAME = 5e-6
"""Relative distance of float32 gradients: TRL takes the gradient through other kernels, sums run in another order;
measured 4e-7 to 1e-6."""
STEEP = 1e-4
"""The same where the loss magnifies its log-ratios, by exp(-c) or by 1 / tau: each is a difference of sums over tokens,
of some hundreds, and float32 knows it to about 3e-5; measured 5e-6 to 4e-5."""
LOSS, LOSS_STEEP = 1e-6, 1e-5
"""Relative difference of the losses, and of those that grow with the log-ratios faster than they do; of these 1e-7 to
2e-6 was measured, by processor."""
NUM_ROWS, LR = 8, 1e-3


def peft_config(lora: LoraConfig) -> PeftLoraConfig:
    return PeftLoraConfig(
        r=lora.rank, lora_alpha=int(lora.alpha), target_modules=lora.target_modules, task_type="CAUSAL_LM"
    )


def arguments(out: Path, **settings: Any) -> dict[str, Any]:
    """Full-batch AdamW at a constant rate, as `tiny.branch`."""
    return settings | {
        "output_dir": str(out),
        "per_device_train_batch_size": NUM_ROWS,
        "max_steps": 2,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1e9,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }


def sft_trainer(rows: Sequence[Any], config: BranchConfig, out: Path) -> Any:
    data = Dataset.from_list([{"input_ids": r.input_ids, "labels": r.labels} for r in rows])
    settings = arguments(out, max_length=None, dataset_kwargs={"skip_prepare_dataset": True})
    return trl.SFTTrainer(
        load_base(base_folder(MODEL), MODEL),
        trl.SFTConfig(**settings),
        train_dataset=data,
        processing_class=byte_tokenizer(),
        peft_config=peft_config(config.lora),
    )


def dpo_trainer(rows: Sequence[Any], config: DPO, out: Path, loss_type: str | None = None) -> Any:
    text = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}] * len(rows))
    settings = arguments(
        out,
        max_length=None,
        beta=config.beta,
        label_smoothing=config.label_smoothing,
        loss_type=[loss_type or config.loss.value, *["sft"] * bool(config.sft_weight)],
        loss_weights=[1.0, config.sft_weight] if config.sft_weight else None,
        ld_alpha=config.ld_alpha if config.ld_alpha != 1 else None,
        f_divergence_type=config.f_divergence.value,
        f_alpha_divergence_coef=config.f_alpha,
        discopop_tau=config.discopop_tau,
    )
    trainer = trl.DPOTrainer(
        load_base(base_folder(MODEL), MODEL),
        args=trl.DPOConfig(**settings),
        train_dataset=text,
        processing_class=byte_tokenizer(),
        peft_config=peft_config(config.lora),
    )
    trainer.train_dataset = Dataset.from_list([r._asdict() for r in rows])  # the tokens themselves
    return trainer


def orpo_trainer(rows: Sequence[Any], config: ORPO, out: Path) -> Any:
    from peft import get_peft_model

    text = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}] * len(rows))
    trainer = orpo.ORPOTrainer(
        get_peft_model(load_base(base_folder(MODEL), MODEL), peft_config(config.lora)),
        args=orpo.ORPOConfig(**arguments(out, max_length=1024, beta=config.beta)),
        train_dataset=text,
        processing_class=byte_tokenizer(),
    )
    trainer.train_dataset = Dataset.from_list([orpo_row(r) for r in rows])
    return trainer


def cpo_trainer(rows: Sequence[Any], config: SimPO | CPO, out: Path) -> Any:
    from peft import get_peft_model

    text = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}] * len(rows))
    settings = {"loss_type": "sigmoid", "beta": config.beta, "cpo_alpha": config.sft_weight}
    if isinstance(config, SimPO):
        settings |= {"loss_type": "simpo", "simpo_gamma": config.gamma}
    settings["label_smoothing"] = config.label_smoothing
    trainer = cpo.CPOTrainer(
        get_peft_model(load_base(base_folder(MODEL), MODEL), peft_config(config.lora)),
        args=cpo.CPOConfig(**arguments(out, max_length=1024, **settings)),
        train_dataset=text,
        processing_class=byte_tokenizer(),
    )
    trainer.train_dataset = Dataset.from_list([orpo_row(r) for r in rows])
    return trainer


def kto_trainer(rows: Sequence[Any], config: KTO, out: Path) -> Any:
    text = Dataset.from_list([{"prompt": "a", "completion": "b", "label": True}] * len(rows))
    settings = arguments(
        out,
        max_length=None,
        loss_type=config.loss.value,
        beta=config.beta,
        desirable_weight=config.desirable_weight,
        undesirable_weight=config.undesirable_weight,
        train_sampling_strategy="sequential",
    )
    trainer = trl.KTOTrainer(
        load_base(base_folder(MODEL), MODEL),
        args=trl.KTOConfig(**settings),
        train_dataset=text,
        processing_class=byte_tokenizer(),
        peft_config=peft_config(config.lora),
    )
    trainer.train_dataset = Dataset.from_list([kto_row(row, config) for row in rows])
    return trainer


def kto_row(row: Any, config: KTO) -> dict[str, Any]:
    """The columns that TRL's own preparation makes, from our tokens."""
    columns = {"prompt_ids": row.prompt_ids, "completion_ids": row.answer_ids, "label": row.label}
    return columns | ({"KL_completion_ids": row.mismatched_ids} if config.needs_kl else {})


def orpo_row(row: Any) -> dict[str, Any]:
    """The columns that TRL's `tokenize_row` makes, from our tokens."""
    columns: dict[str, Any] = {
        "prompt_input_ids": row.prompt_ids,
        "prompt_attention_mask": [1] * len(row.prompt_ids),
    }
    for name, answer in (("chosen", row.chosen_ids), ("rejected", row.rejected_ids)):
        columns[f"{name}_input_ids"] = [*row.prompt_ids, *answer]
        columns[f"{name}_attention_mask"] = [1] * (len(row.prompt_ids) + len(answer))
        columns[f"{name}_labels"] = [*[IGNORE] * len(row.prompt_ids), *answer]
    return columns


TRAINERS = {
    SFTConfig: sft_trainer,
    DPO: dpo_trainer,
    ORPO: orpo_trainer,
    SimPO: cpo_trainer,
    CPO: cpo_trainer,
    KTO: kto_trainer,
}
CASES = {
    "sft": branch(SFTConfig, lr=LR),
    "dpo sigmoid": branch(DPO, lr=LR),
    "dpo ipo": branch(DPO, lr=LR, loss=DPOLoss.ipo),
    "dpo hinge": branch(DPO, lr=LR, loss=DPOLoss.hinge),
    "orpo": branch(ORPO, lr=LR, beta=0.5),
    "simpo": branch(SimPO, lr=LR),
    "cpo": branch(CPO, lr=LR, label_smoothing=0.1),
    "kto": branch(KTO, lr=LR, desirable_weight=1.3, undesirable_weight=0.7),
}
IN_TRL = {
    "robust": {"label_smoothing": 0.1},
    "exo_pair": {"label_smoothing": 1e-3},
    **{
        name: {}
        for name in ("nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down", "discopop", "sigmoid_norm")
    },
}
LOSSES = {name: branch(DPO, lr=LR, loss=DPOLoss(name), **options) for name, options in IN_TRL.items()}
LOSSES |= {
    f"{loss.value} {f.value}": branch(DPO, lr=LR, loss=loss, f_divergence=f)
    for loss in (DPOLoss.sigmoid, DPOLoss.ipo)
    for f in FDivergence
    if f is not FDivergence.reverse_kl
}
LOSSES |= {
    "rpo": branch(DPO, lr=LR, sft_weight=0.7),
    "ld": branch(DPO, lr=LR, ld_alpha=0.3),
    "ld ipo": branch(DPO, lr=LR, loss=DPOLoss.ipo, ld_alpha=0.3),
    "kto apo_zero_unpaired": branch(KTO, lr=LR, loss=KTOLoss.apo_zero_unpaired, undesirable_weight=1.5),
    "simpo with likelihood": branch(SimPO, lr=LR, sft_weight=0.5, label_smoothing=0.1),
}


def rows_of(config: BranchConfig) -> Sequence[Any]:
    if isinstance(config, KTO):
        return judged(NUM_ROWS)
    return sft_rows(NUM_ROWS) if isinstance(config, SFTConfig) else pairs(NUM_ROWS)


def prepared(module: BranchModule, rows: Sequence[Any]) -> GlobalBatch[Any]:
    """The rows as one batch, with its reference point if there is one."""
    batch = whole_batch(rows, step=1)
    if not isinstance(module.config, KTO) or not module.config.needs_kl:
        return batch
    with torch.no_grad():
        others = answer_logps(module.backbone, [row.mismatched for row in rows], module.pad_id)
    return replace(batch, kl=reference_point(others.policy - others.reference, len(rows)))


def same_adapter(trainer: Any, module: BranchModule) -> None:
    """Copy our factors into TRL's model."""
    theirs = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    ours = adapter(module)
    assert theirs.keys() == ours.keys()
    with torch.no_grad():
        for name, p in theirs.items():
            p.copy_(ours[name])


def trl_gradients(trainer: Any) -> tuple[float, dict[str, Tensor]]:
    """TRL's own collator and `compute_loss` on all rows at once."""
    (batch,) = trainer.get_train_dataloader()
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch))
    loss.backward()
    return loss.item(), {n: p.grad for n, p in trainer.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", [*CASES, *LOSSES])
def test_loss_and_gradient_against_trl(name, tmp_path):
    config = (CASES | LOSSES)[name]
    rows = rows_of(config)
    module = move(make(config, micro_batch_size=2), scale=0.2)
    loss, _ = module.micro_loss(list(rows), prepared(module, rows))
    loss.backward()

    trainer = TRAINERS[type(config)](rows, config, tmp_path)
    same_adapter(trainer, module)
    theirs, gradient = trl_gradients(trainer)

    steep = "divergence" in name or "_kl" in name or name in ("discopop", "sppo_hard")
    assert loss.item() == pytest.approx(theirs, rel=LOSS_STEEP if steep else LOSS)
    assert distance(gradients(module), gradient) < (STEEP if steep else SAME)


@pytest.mark.parametrize("name", CASES)
def test_two_training_steps_against_trl(name, tmp_path):
    config = CASES[name]
    rows = rows_of(config)
    module = make(config, steps=2, micro_batch_size=2)
    trainer = TRAINERS[type(config)](rows, config, tmp_path)
    same_adapter(trainer, module)
    start = adapter(module)

    ours = run(module, rows)
    trainer.train()

    theirs = [row for row in trainer.state.log_history if "loss" in row]
    for step in range(2):
        assert ours[step]["train/loss"] == pytest.approx(theirs[step]["loss"], rel=1e-6)
        assert ours[step]["train/grad_norm"] == pytest.approx(theirs[step]["grad_norm"], rel=1e-5)
    end = {n: p.detach() for n, p in trainer.model.named_parameters() if p.requires_grad}
    moved = {n: p - start[n] for n, p in end.items()}
    # AdamW's first steps are nearly signs, so a gradient near 0 is magnified; measured 1e-6, 2e-4 for IPO
    assert distance({n: p - start[n] for n, p in adapter(module).items()}, moved) < 2e-3


def test_conservative_dpo_against_trl_robust(tmp_path):
    """TRL has no smoothed sigmoid; its `robust` loss is the same two terms, subtracted and divided by 1 - 2 eps.

    From robust = ((1-eps) l(h) - eps l(-h)) / (1 - 2 eps) at eps and the plain l(h), ours follows.
    """
    eps = 0.2
    config = branch(DPO, label_smoothing=eps)
    rows = pairs(NUM_ROWS)
    module = move(make(config), scale=0.2)
    loss, _ = module.micro_loss(rows, whole_batch(rows, step=1))

    losses = []
    for smoothing, kind in ((eps, "robust"), (0.0, "sigmoid")):
        trainer = dpo_trainer(rows, branch(DPO, label_smoothing=smoothing), tmp_path, kind)
        same_adapter(trainer, module)
        losses.append(trl_gradients(trainer)[0])
    robust, plain = losses
    flipped = ((1 - eps) * plain - (1 - 2 * eps) * robust) / eps
    assert loss.item() == pytest.approx((1 - eps) * plain + eps * flipped, rel=1e-5)


def test_trl_orpo_depends_on_the_micro_batch_and_ours_does_not(tmp_path):
    config, rows = CASES["orpo"], sorted(pairs(NUM_ROWS), key=lambda r: len(r.chosen_ids))
    module = make(config, micro_batch_size=4)
    batch = whole_batch(rows, step=1)
    whole = module.micro_loss(rows, batch)[0].item()
    ours = sum(module.micro_loss(rows[i : i + 4], batch)[0].item() for i in (0, 4))

    halves = []
    for i in (0, 4):
        trainer = orpo_trainer(rows[i : i + 4], config, tmp_path)
        same_adapter(trainer, module)
        halves.append(trl_gradients(trainer)[0])

    assert ours == pytest.approx(whole, rel=1e-6)
    assert abs(sum(halves) / 2 - whole) > 1e-4


# --- unpaired rows --------------------------------------------------------------------------------------


def test_kto_logs_against_trl(tmp_path):
    """Chosen and rejected are the good and the bad answers, each a mean of its own."""
    config, rows = CASES["kto"], judged(NUM_ROWS)
    module = make(config, steps=2, micro_batch_size=2)
    trainer = kto_trainer(rows, config, tmp_path)
    same_adapter(trainer, module)

    ours = run(module, rows)[1]
    trainer.train()

    theirs = [row for row in trainer.state.log_history if "loss" in row][1]
    for name in (
        "logps/chosen",
        "logps/rejected",
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "kl",
    ):
        what, _, kind = name.partition("/")
        mine = ours[f"train/{kind}_{what}" if kind and kind != "margins" else f"train/{kind or what}"]
        # float32 sums over dozens of tokens, in another order
        assert mine == pytest.approx(theirs[name], rel=1e-5, abs=1e-5)
    assert theirs["kl"] > 1e-3


def test_mismatched_answers_against_trl(tmp_path):
    """TRL gives a row the answer of the row before it: of the rows turned round, ours."""
    texts = [
        {"prompt": f"Q{i}", "completion": f"A{i}" * (i + 1), "label": i % 3 > 0} for i in range(NUM_ROWS)
    ]
    settings = arguments(tmp_path, max_length=12, train_sampling_strategy="sequential")
    trainer = trl.KTOTrainer(
        load_base(base_folder(MODEL), MODEL),
        args=trl.KTOConfig(**settings),
        train_dataset=Dataset.from_list(texts[::-1]),
        processing_class=byte_tokenizer(),
        peft_config=peft_config(LoraConfig()),
    )
    prepared_by_trl = list(trainer.train_dataset)[::-1]
    (batch,) = trainer.get_train_dataloader()  # which cuts each sequence

    rows = [EncodedAnswer(r["prompt_ids"], r["completion_ids"], r["label"], []) for r in prepared_by_trl]
    ours = list(mismatched(rows, 12, "rows"))

    assert len(ours) == NUM_ROWS and len({tuple(row.answer_ids) for row in rows}) == NUM_ROWS
    assert len(ours[-2].mismatched_ids) < len(rows[-1].answer_ids)  # something is cut
    theirs = zip(batch["KL_input_ids"].flip(0), batch["KL_completion_mask"].flip(0), strict=True)
    assert [row.mismatched_ids for row in ours] == [ids[mask.bool()].tolist() for ids, mask in theirs]


def test_split_pairs_against_trl():
    """The same rows as `unpair_preference_dataset`, in another order."""
    answers = pairs(NUM_ROWS)
    texts = [{"prompt": str(p), "chosen": str(c), "rejected": str(r)} for p, c, r in answers]
    theirs = trl.unpair_preference_dataset(Dataset.from_list(texts))
    ours = [(str(r.prompt_ids), str(r.answer_ids), r.label) for r in split_pairs(answers)]
    assert sorted(ours) == sorted((r["prompt"], r["completion"], r["label"]) for r in theirs)
