"""One step by hand, accumulation, the L1 term, the reference, sequential training, determinism."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from tiny import (
    BFLOAT16,
    MODEL,
    PAD,
    adapter,
    branch,
    distance,
    gradients,
    make,
    move,
    pairs,
    rows_for,
    run,
    sft_rows,
    whole_batch,
)

from paft.adapter import add_deltas
from paft.config import DPO, ORPO, DPOLoss, L1Config, L1Of, LoraConfig, NLLScope, SFTConfig
from paft.losses import IGNORE, label_logps
from paft.model import base_folder, load_base
from paft.training.batches import preference_tensors, sft_tensors
from paft.training.module import BranchModule, refuse_not_finite

BRANCHES = {
    "sft": branch(SFTConfig),
    "sft+l1": branch(SFTConfig, l1=L1Config(1e-3)),
    "sft+l1 factors": branch(SFTConfig, l1=L1Config(1e-3, L1Of.factors)),
    "dpo": branch(DPO),
    "dpo ipo": branch(DPO, loss=DPOLoss.ipo),
    "dpo hinge": branch(DPO, loss=DPOLoss.hinge),
    "dpo smoothed": branch(DPO, label_smoothing=0.2),
    "orpo": branch(ORPO),
    "orpo response": branch(ORPO, nll_scope=NLLScope.response),
}
SAME = 5e-6
"""Relative distance of float32 gradients summed in another order; measured 2e-7 to 6e-7. A mean of row means
instead of one over tokens is off by more than 0.1."""


def gradient_of_a_step(config, **settings) -> dict[str, torch.Tensor]:
    """What the optimizer is given in step 1, both factors already moved."""
    module = move(make(config, steps=2, **settings))
    run(module, rows_for(config, 8), start=1)
    return gradients(module)


@pytest.mark.parametrize("name", BRANCHES)
def test_micro_batch_size_does_not_change_the_gradient(name):
    whole = gradient_of_a_step(BRANCHES[name], micro_batch_size=8)
    for size in (1, 2, 4):
        assert distance(gradient_of_a_step(BRANCHES[name], micro_batch_size=size), whole) < SAME


# --- one step written out in plain torch ---------------------------------------------------------------


def plain_logps(module: BranchModule, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[B, T - 1] from the model's own logits, with an attention mask, and no code of ours."""
    logits = module.backbone.peft(input_ids=ids, attention_mask=(ids != PAD).long()).logits
    logps = F.log_softmax(logits[:, :-1], -1)
    picked = logps.gather(2, labels[:, 1:].clamp(min=0)[..., None]).squeeze(2)
    return picked * (labels[:, 1:] != IGNORE)


def plain_penalty(module: BranchModule, config: SFTConfig) -> torch.Tensor:
    of_delta = config.l1.of is L1Of.delta
    return config.l1.weight * sum(
        (s * B @ A).abs().sum() if of_delta else A.abs().sum() + B.abs().sum()
        for A, B, s in module.backbone.factors()
    )


def plain_sft(module, rows, config):
    ids, labels = sft_tensors(rows, PAD)
    nll = -plain_logps(module, ids, labels).sum() / (labels != IGNORE).sum()
    return nll + plain_penalty(module, config)


def plain_dpo(module, rows, config):
    ids, labels, _ = preference_tensors(rows, PAD)
    lengths = (labels != IGNORE).sum(1) if config.loss is DPOLoss.ipo else 1
    policy = plain_logps(module, ids, labels).sum(1) / lengths
    with torch.no_grad(), module.backbone.peft.disable_adapter():
        reference = plain_logps(module, ids, labels).sum(1) / lengths
    reward, n = policy - reference, len(rows)
    h, b, eps = reward[:n] - reward[n:], config.beta, config.label_smoothing
    losses = {
        "sigmoid": lambda: (
            -(1 - eps) * torch.log(torch.sigmoid(b * h)) - eps * torch.log(1 - torch.sigmoid(b * h))
        ),
        "hinge": lambda: (1 - b * h).clamp(min=0),
        "ipo": lambda: (h - 1 / (2 * b)) ** 2,
    }
    return losses[config.loss.value]().mean()


def plain_orpo(module, rows, config):
    ids, labels, _ = preference_tensors(rows, PAD)
    logps, n = plain_logps(module, ids, labels), len(rows)
    p = torch.exp(logps.sum(1) / (labels != IGNORE).sum(1))
    odds = p / (1 - p)
    ratio = -torch.log(torch.sigmoid(torch.log(odds[:n] / odds[n:]))).mean()
    if config.nll_scope is NLLScope.response:
        return -logps[:n].sum() / (labels[:n] != IGNORE).sum() + config.beta * ratio
    every = torch.where(ids == PAD, IGNORE, ids)[:n]
    nll = -plain_logps(module, ids[:n], every).sum() / (every[:, 1:] != IGNORE).sum()
    return nll + config.beta * ratio


PLAIN = {SFTConfig: plain_sft, DPO: plain_dpo, ORPO: plain_orpo}


@pytest.mark.parametrize("name", BRANCHES)
def test_step_against_plain_torch(name):
    config = BRANCHES[name]
    rows = rows_for(config, 8)
    ours = gradient_of_a_step(config, micro_batch_size=2)

    module = move(make(config))
    loss = PLAIN[type(config)](module, rows, config)
    loss.backward()

    assert distance(ours, gradients(module)) < SAME
    again = move(make(config, steps=2, micro_batch_size=2))
    (logged,) = run(again, rows, start=1)
    assert logged["train/loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_a_mean_of_row_means_would_be_noticed():
    rows, config = sft_rows(8), BRANCHES["sft"]
    module = move(make(config))
    ids, labels = sft_tensors(rows, PAD)
    logps = plain_logps(module, ids, labels)
    (-logps.sum(1) / (labels[:, 1:] != IGNORE).sum(1)).mean().backward()
    assert distance(gradient_of_a_step(config), gradients(module)) > 0.1


# --- L1 ------------------------------------------------------------------------------------------------


def test_lambda_zero_is_plain_sft():
    config = branch(SFTConfig, l1=L1Config(0.0))
    module = make(config, steps=3)
    logs = run(module, sft_rows(24))
    assert module.penalty() is None
    assert all(row["train/loss"] == row["train/nll"] and "train/l1" not in row for row in logs)


@pytest.mark.parametrize("size", [1, 8])
def test_penalty_enters_once_whatever_the_micro_batch(size):
    config = BRANCHES["sft+l1"]
    module = move(make(config, steps=2, micro_batch_size=size))
    expected = plain_penalty(module, config).item()
    (logged,) = run(module, sft_rows(8), start=1)
    assert logged["train/l1"] == pytest.approx(expected, rel=1e-5)
    assert logged["train/loss"] == pytest.approx(logged["train/nll"] + logged["train/l1"], rel=1e-6)


def test_l1_makes_the_delta_sparser():
    def share_small(weight: float) -> float:
        module = make(branch(SFTConfig, lr=1e-3, l1=L1Config(weight)), steps=30)
        run(module, sft_rows(8))
        deltas = [s * B @ A for A, B, s in module.backbone.factors()]
        return sum(float((d.abs() < 1e-5).float().mean()) for d in deltas) / len(deltas)

    assert share_small(1e-1) > share_small(0.0) + 0.2


# --- reference and base --------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [MODEL, BFLOAT16], ids=["float32", "bfloat16"])
def test_margins_are_exactly_zero_before_the_first_step(model):
    first, second = run(make(BRANCHES["dpo"], steps=2, model=model), pairs(16))
    assert first["train/margins"] == first["train/chosen_rewards"] == first["train/rejected_rewards"] == 0
    assert first["train/loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert second["train/margins"] != 0


def test_reference_is_the_base_model_whatever_the_adapter_and_its_dropout():
    module = move(make(branch(DPO, lora=LoraConfig(rank=4, alpha=8, dropout=0.5))))
    ids, labels, _ = preference_tensors(pairs(4), PAD)
    with module.backbone.reference():
        ours = module.backbone(ids, labels)
    logits = load_base(base_folder(MODEL), MODEL)(input_ids=ids).logits
    torch.testing.assert_close(ours, label_logps(logits, labels))
    assert not torch.allclose(module.backbone(ids, labels), ours, atol=1e-2)
    assert not ours.requires_grad


def test_an_adapter_that_does_not_start_at_zero_is_refused():
    with pytest.raises(ValueError, match=r"differ by .* before the first step; they must be equal"):
        run(move(make(BRANCHES["dpo"])), pairs(8))


@pytest.mark.parametrize("name", ["sft+l1", "dpo", "orpo"])
def test_only_factors_are_trained_and_the_base_stays_bitwise(name):
    config = BRANCHES[name]
    module = make(config, steps=3, model=BFLOAT16)
    frozen = {n: p for n, p in module.named_parameters() if not p.requires_grad}
    before = {n: p.clone() for n, p in frozen.items()}
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    start = {n: p.detach().clone() for n, p in trained.items()}

    run(module, rows_for(config, 24))

    assert {p.dtype for p in frozen.values()} == {torch.bfloat16}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert all("lora_A" in n or "lora_B" in n for n in trained) and len(trained) == 2 * 7 * 2
    assert all(torch.equal(p, before[n]) for n, p in frozen.items())
    assert all(not torch.equal(p, start[n]) for n, p in trained.items())


# --- sequential ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """An adapter folder with a delta large enough to matter."""
    module = move(make(BRANCHES["sft"]))
    folder = tmp_path_factory.mktemp("sft") / "adapter"
    module.backbone.save(folder, {})
    return folder


def merged_by_peft(folder: Path) -> torch.nn.Module:
    return PeftModel.from_pretrained(load_base(base_folder(MODEL), MODEL), str(folder)).merge_and_unload()


def test_sequential_base_against_merge_and_unload(saved):
    module = make(BRANCHES["dpo"], deltas=(saved,))
    ids = torch.arange(3, 40)[None]
    ours = module.backbone.peft(input_ids=ids).logits
    theirs = merged_by_peft(saved)(input_ids=ids).logits
    base = load_base(base_folder(MODEL), MODEL)(input_ids=ids).logits
    torch.testing.assert_close(ours, theirs)
    assert (ours - base).abs().max() > 1e-3, "the delta must be there to be tested"


def test_sequential_reference_is_the_sft_model(saved):
    (first,) = run(make(BRANCHES["dpo"], deltas=(saved,)), pairs(8))
    assert first["train/margins"] == 0
    ids, labels, _ = preference_tensors(pairs(8), PAD)
    logits = merged_by_peft(saved)(input_ids=ids).logits
    logps = F.log_softmax(logits[:, :-1], -1).gather(2, labels[:, 1:].clamp(min=0)[..., None]).squeeze(2)
    expected = (logps * (labels[:, 1:] != IGNORE)).sum(1)[:8].mean().item()
    assert first["train/chosen_logps"] == pytest.approx(expected, rel=1e-5)


def test_two_deltas_are_added_before_the_one_cast_to_bfloat16(saved):
    base = load_base(base_folder(BFLOAT16), BFLOAT16)
    plain = {n: p.clone() for n, p in base.named_parameters()}
    add_deltas(base, [saved, saved])
    name = "model.layers.0.self_attn.q_proj.weight"
    from paft.delta import read_adapter

    expected = (plain[name].float() + 2 * read_adapter(saved)[name].dense()).bfloat16()
    assert torch.equal(dict(base.named_parameters())[name], expected)


# --- determinism ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("name", ["sft+l1", "dpo"])
def test_a_seed_gives_one_adapter(name, dropout):
    config = dataclasses.replace(BRANCHES[name], lora=LoraConfig(rank=4, alpha=8, dropout=dropout))

    def train(seed: int) -> dict[str, torch.Tensor]:
        module = make(config, steps=3, seed=seed)
        run(module, rows_for(config, 16))
        return adapter(module)

    once, again, other = train(1), train(1), train(2)
    assert all(torch.equal(once[n], again[n]) for n in once)
    assert distance(other, once) > 0.1


def test_initialisation_does_not_depend_on_the_global_generator():
    torch.manual_seed(1)
    first = adapter(make(BRANCHES["sft"]))
    torch.manual_seed(2)
    torch.rand(100)
    state = torch.get_rng_state()
    second = adapter(make(BRANCHES["sft"]))
    assert all(torch.equal(first[n], second[n]) for n in first)
    assert torch.equal(torch.get_rng_state(), state)


def test_gradient_checkpointing_does_not_change_the_gradient():
    plain = gradient_of_a_step(BRANCHES["dpo"])
    assert distance(gradient_of_a_step(BRANCHES["dpo"], gradient_checkpointing=True), plain) < SAME


def test_a_loss_that_is_not_finite_names_the_step():
    batch = whole_batch(sft_rows(4), step=17)
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 17"):
        refuse_not_finite(torch.tensor(float("nan")), batch)


def test_nan_weights_stop_the_run_before_the_optimizer():
    module = make(BRANCHES["sft"], steps=3)
    with torch.no_grad():
        module.backbone.factors()[0][1].fill_(float("nan"))
    others = {n: p for n, p in adapter(module).items() if not p.isnan().any()}
    with pytest.raises(FloatingPointError, match="at step 0"):
        run(module, sft_rows(24))
    after = adapter(module)
    assert all(torch.equal(after[n], p) for n, p in others.items())
