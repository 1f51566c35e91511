"""Our losses against TRL's own code."""

from types import SimpleNamespace

import pytest
import torch

from paft.losses import IGNORE, log1mexp, orpo_loss, sequence_logps

orpo = pytest.importorskip("trl.experimental.orpo")


def logps() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [-5 * torch.rand(16, generator=generator) for _ in range(4)]


def test_orpo_loss_against_trl():
    chosen, rejected, *_ = logps()
    trainer = SimpleNamespace(beta=0.25, accelerator=SimpleNamespace(device="cpu"))
    theirs, *_ = orpo.ORPOTrainer.odds_ratio_loss(trainer, chosen, rejected)
    nll = torch.tensor(1.5)
    torch.testing.assert_close(orpo_loss(chosen, rejected, nll, beta=0.25), nll - theirs)


def test_log1mexp_against_trl():
    from trl.experimental.orpo import orpo_trainer

    x = -torch.logspace(-6, 1.5, 50)
    torch.testing.assert_close(log1mexp(x), orpo_trainer.log1mexp(x))


@pytest.mark.parametrize("mean", [False, True])
def test_sequence_logps_against_trl(mean):
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(3, 9, 31, generator=generator)
    labels = torch.randint(0, 31, (3, 9), generator=generator)
    labels[:, :3] = IGNORE
    theirs = orpo.ORPOTrainer.get_batch_logps(logits, labels.clone(), average_log_prob=mean)
    torch.testing.assert_close(sequence_logps(logits, labels, mean=mean), theirs)
