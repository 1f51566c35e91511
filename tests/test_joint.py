"""Joint training: both losses in one adapter, each as it is alone."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import BRANCHES, MODEL, PAD, distance, gradients, make, move, pairs, rows_for, sft_rows, whole_batch

from paft.config import Template, TrainerConfig
from paft.graph.configs import BranchStage, JointRows
from paft.model.base import base_folder
from paft.training.batches import StepLoader
from paft.training.joint import JointLoader, JointModule, joined

WEIGHT = 0.7


def joint_module(name: str, **settings: Any) -> JointModule:
    stage = BranchStage(MODEL, BRANCHES[name], Template.chatml, 0, joint=JointRows(WEIGHT, 8, 1, None))
    module = JointModule(base_folder(MODEL), stage, TrainerConfig(**settings), num_steps=1, pad_id=PAD)
    module.configure_model()
    return module


@pytest.mark.parametrize("name", ["dpo", "orpo", "simpo", "kto"])
@pytest.mark.parametrize("micro", [1, 3])
def test_joint_loss_and_gradient_are_the_sum_of_both_branches(name, micro, monkeypatch):
    monkeypatch.setattr("paft.training.module.largest_of_ranks", lambda number, trainer: number)
    here = SimpleNamespace(root_device=torch.device("cpu"))
    monkeypatch.setattr(JointModule, "trainer", SimpleNamespace(world_size=1, strategy=here))
    texts, answers = whole_batch(sft_rows(6), step=1), whole_batch(rows_for(BRANCHES[name], 5), step=1)
    module, loss = move(joint_module(name, micro_batch_size=micro)), 0.0
    batch = module.with_reference_point(joined(1, texts, answers))
    answers = replace(answers, kl=batch.kl)
    for rows, _ in module._passes(batch):
        part, _ = module.micro_loss(rows, batch)
        part.backward()
        loss += part.item()

    sft, preference = move(make(BRANCHES["sft"])), move(make(BRANCHES[name]))
    alone = [m.micro_loss(list(b.rows), b)[0] for m, b in ((sft, texts), (preference, answers))]
    for part in alone:
        part.backward()
    assert loss == pytest.approx(WEIGHT * alone[0].item() + alone[1].item(), rel=1e-5)
    ours, a, b = gradients(module), gradients(sft), gradients(preference)
    # float32 sums in another order
    assert distance(ours, {n: WEIGHT * a[n] + b[n] for n in b}) < 5e-6


def loaders(texts: int, answers: int) -> tuple[StepLoader[Any], StepLoader[Any]]:
    return (
        StepLoader(sft_rows(2 * texts), global_batch_size=2, steps=texts, seed=0),
        StepLoader(pairs(2 * answers), global_batch_size=2, steps=answers, seed=0),
    )


@pytest.mark.parametrize(("texts", "answers"), [(6, 6), (9, 3), (3, 10), (7, 5)])
def test_every_batch_comes_once_and_the_shorter_is_spread(texts, answers):
    joint = JointLoader(*loaders(texts, answers))
    batches = list(joint)
    assert len(batches) == len(joint) == max(texts, answers)
    for fields, alone in zip(
        (2, 3), loaders(texts, answers), strict=True
    ):  # an Encoded has two, a pair three
        seen = [row for batch in batches for row in batch.rows if len(row) == fields]
        assert seen == [row for batch in alone for row in batch.rows]
    fewer = 2 if texts < answers else 3
    lacking = "".join(" " if any(len(row) == fewer for row in b.rows) else "x" for b in batches)
    assert max(map(len, lacking.split(" "))) <= max(texts, answers) // min(texts, answers)


def test_a_resumed_joint_loader_goes_on_with_the_next_step():
    whole = [batch.rows for batch in JointLoader(*loaders(4, 2))]
    first, second = JointLoader(*loaders(4, 2)), JointLoader(*loaders(4, 2))
    next(iter(first))
    second.load_state_dict(first.state_dict())
    assert [batch.rows for batch in second] == whole[1:]
