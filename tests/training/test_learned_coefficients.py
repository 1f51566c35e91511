"""`merge=learned`: what a few steps on a few rows make of the coefficients of two LoRAs."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from full_models import save_adapter
from tiny import MODEL, branch, make, pairs, run, sft_rows

from paft.config import SFTConfig, TrainerConfig
from paft.delta.delta import StoredDelta
from paft.graph.configs import CoefficientsStage
from paft.merge.branches import read_branches
from paft.model.base import base_folder
from paft.objectives import DPO
from paft.proof.base import load_base
from paft.training.coefficients import learn
from paft.training.mixed import MixedPolicy

ROWS, START = 16, 0.5


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SFT adapter that knows the rows."""
    module = make(branch(SFTConfig, global_batch_size=ROWS), steps=30)
    run(module, sft_rows(ROWS))
    module.backbone.save(folder := tmp_path_factory.mktemp("sft"), {})
    return folder


def learnt(
    branches: list[Mapping[str, StoredDelta]], weight: float, lr: float = 0.05
) -> tuple[list[float], list[float]]:
    """The loss before every step, and the mean coefficient of each branch after the last."""
    stage = CoefficientsStage(MODEL, DPO(), [START, START], ROWS, ROWS, 20, lr, weight, seed=0)
    policy = MixedPolicy(load_base(base_folder(MODEL), MODEL), branches, stage.weights)
    policy.train()
    losses = learn(policy, stage, sft_rows(ROWS), pairs(ROWS), 0, TrainerConfig(progress_bar=False))
    own = [c.detach() for c in policy.coefficients.values()]
    return losses, [float(sum(c[i] for c in own) / len(own)) for i in range(2)]


def described(trained: Path, noise: Path) -> list[Mapping[str, StoredDelta]]:
    base = base_folder(MODEL)
    return [
        read_branches(base, {name: at})[name]
        for name, at in {"sft": trained, "preference": save_adapter(base, noise, seed=3)}.items()
    ]


def test_a_trained_branch_is_turned_up_and_one_of_noise_down(trained, tmp_path):
    losses, (sft, noise) = learnt(described(trained, tmp_path / "noise"), weight=0.0)
    assert losses[-1] < losses[0] - 0.05  # 0.106 measured: the adapter alone is 0.109 below
    assert sft > START + 0.1 and noise < START - 0.1


def test_without_steps_of_any_length_nothing_moves(trained, tmp_path):
    losses, means = learnt(described(trained, tmp_path / "noise"), weight=0.0, lr=0.0)
    assert losses == [losses[0]] * len(losses) and means == [START, START]


def test_the_preference_loss_counts_by_its_weight(trained, tmp_path):
    branches = described(trained, tmp_path / "noise")
    alone, both, twice = (learnt(branches, weight, lr=0.0)[0][0] for weight in (0.0, 1.0, 2.0))
    assert both - alone == pytest.approx((twice - alone) / 2, rel=1e-5) and both > alone
