"""One optimizer step: micro-batches, plain torch by hand, and the L1 term."""

import pytest
import torch
import torch.nn.functional as F
from tiny import (
    BRANCHES,
    PAD,
    SAME,
    branch,
    distance,
    gradient_of_a_step,
    gradients,
    make,
    move,
    rows_for,
    run,
    sft_rows,
)

from paft.config import L1Config, L1Of, SFTConfig
from paft.forward.batches import sft_tensors
from paft.forward.pairs import two_row_tensors
from paft.losses import IGNORE
from paft.objectives import CPO, DPO, KTO, ORPO, DPOLoss, KTOLoss, NLLScope, SimPO
from paft.training.module import BranchModule


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
    ids, labels, _ = sft_tensors(rows, PAD)
    nll = -plain_logps(module, ids, labels).sum() / (labels != IGNORE).sum()
    return nll + plain_penalty(module, config)


def plain_dpo(module, rows, config):
    ids, labels, *_ = two_row_tensors(rows, PAD)
    n = len(rows)
    place = (labels[:, 1:] != IGNORE).cumsum(1)  # 1 at the first token of an answer
    lengths = place[:, -1]
    shared = torch.minimum(lengths[:n], lengths[n:]).repeat(2)[:, None]
    weights = torch.where(place <= shared, 1.0, config.ld_alpha)
    over = lengths if config.loss is DPOLoss.ipo else 1
    logps = plain_logps(module, ids, labels)
    policy = (logps * weights).sum(1) / over
    with torch.no_grad(), module.backbone.peft.disable_adapter():
        reference = (plain_logps(module, ids, labels) * weights).sum(1) / over
    reward = policy - reference
    h, b, eps = reward[:n] - reward[n:], config.beta, config.label_smoothing
    losses = {
        "sigmoid": lambda: (
            -(1 - eps) * torch.log(torch.sigmoid(b * h)) - eps * torch.log(1 - torch.sigmoid(b * h))
        ),
        "hinge": lambda: (1 - b * h).clamp(min=0),
        "ipo": lambda: (h - 1 / (2 * b)) ** 2,
        "dpop": lambda: -torch.log(torch.sigmoid(b * (h - config.dpop_lambda * (-reward[:n]).clamp(min=0)))),
    }
    return losses[config.loss.value]().mean() + config.sft_weight * plain_nll(logps, labels, n)


def plain_nll(logps, labels, n):
    """Of the chosen answers, a mean over their tokens."""
    return -logps[:n].sum() / (labels[:n] != IGNORE).sum()


def plain_simpo(module, rows, config):
    ids, labels, *_ = two_row_tensors(rows, PAD)
    logps, n = plain_logps(module, ids, labels), len(rows)
    means = logps.sum(1) / (labels != IGNORE).sum(1)
    margin = config.beta * (means[:n] - means[n:]) - config.gamma
    return -torch.log(torch.sigmoid(margin)).mean() + config.sft_weight * plain_nll(logps, labels, n)


def plain_cpo(module, rows, config):
    ids, labels, *_ = two_row_tensors(rows, PAD)
    logps, n = plain_logps(module, ids, labels), len(rows)
    sums = logps.sum(1)
    losses = -torch.log(torch.sigmoid(config.beta * (sums[:n] - sums[n:])))
    return losses.mean() + config.sft_weight * plain_nll(logps, labels, n)


def plain_orpo(module, rows, config):
    ids, labels, *_ = two_row_tensors(rows, PAD)
    logps, n = plain_logps(module, ids, labels), len(rows)
    p = torch.exp(logps.sum(1) / (labels != IGNORE).sum(1))
    odds = p / (1 - p)
    ratio = -torch.log(torch.sigmoid(torch.log(odds[:n] / odds[n:]))).mean()
    if config.nll_scope is NLLScope.response:
        return plain_nll(logps, labels, n) + config.beta * ratio
    every = torch.where(ids == PAD, IGNORE, ids)[:n]
    nll = -plain_logps(module, ids[:n], every).sum() / (every[:, 1:] != IGNORE).sum()
    return nll + config.beta * ratio


def plain_kto(module, rows, config):
    """Each prompt with its own answer and with another row's, in one pass each."""
    ratios = plain_log_ratios(module, [(row.prompt_ids, row.answer_ids) for row in rows])
    others = plain_log_ratios(module, [(row.prompt_ids, row.mismatched_ids) for row in rows])
    kl = others.detach().mean().clamp(min=0) if config.loss is KTOLoss.kto else 0
    good = torch.tensor([row.label for row in rows])
    of_good = config.desirable_weight * (1 - torch.sigmoid(config.beta * (ratios - kl)))
    of_bad = config.undesirable_weight * (1 - torch.sigmoid(config.beta * (kl - ratios)))
    return torch.cat([of_good[good], of_bad[~good]]).mean()


def plain_log_ratios(module, texts):
    width = max(len(prompt) + len(answer) for prompt, answer in texts)
    filled = [(p, a, width - len(p) - len(a)) for p, a in texts]
    ids = torch.tensor([[*p, *a, *[PAD] * more] for p, a, more in filled])
    labels = torch.tensor([[*[IGNORE] * len(p), *a, *[IGNORE] * more] for p, a, more in filled])
    with torch.no_grad(), module.backbone.peft.disable_adapter():
        reference = plain_logps(module, ids, labels).sum(1)
    return plain_logps(module, ids, labels).sum(1) - reference


PLAIN = {
    SFTConfig: plain_sft,
    DPO: plain_dpo,
    ORPO: plain_orpo,
    SimPO: plain_simpo,
    CPO: plain_cpo,
    KTO: plain_kto,
}


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


def test_reference_point_of_a_step_is_that_of_its_whole_batch():
    """A micro-batch's own would be another one, and the step's gradient with it."""
    config, rows = BRANCHES["kto"], rows_for(BRANCHES["kto"], 8)
    module = move(make(config, steps=2, micro_batch_size=2))
    others = plain_log_ratios(module, [(row.prompt_ids, row.mismatched_ids) for row in rows]).detach()

    (logged,) = run(module, rows, start=1)

    # a mean of differences of sums over dozens of tokens, each known to 1e-5
    assert logged["train/kl"] == pytest.approx(float(others.mean()), abs=2e-5) and logged["train/kl"] > 1e-2
    assert max(abs(part.mean() - others.mean()) for part in others.split(2)) > 1e-2


def test_a_mean_of_row_means_would_be_noticed():
    rows, config = sft_rows(8), BRANCHES["sft"]
    module = move(make(config))
    ids, labels, _ = sft_tensors(rows, PAD)
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
