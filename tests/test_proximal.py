"""The proximal step: its closed forms, exact zeros, and plain SFT where lambda is 0."""

import pytest
import torch
from scipy.optimize import minimize_scalar
from tiny import adapter, branch, make, run, sft_rows

from paft.config import L1Config, L1Method, L1Of, SFTConfig
from paft.delta.statistics import LowRank, layer_statistics
from paft.losses import soft_threshold
from paft.training.proximal import proximal_step, shrink


def factors(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 24, generator=generator), torch.randn(16, 4, generator=generator)


def trained(steps: int = 8, **l1) -> dict[str, torch.Tensor]:
    module = make(branch(SFTConfig, l1=L1Config(**l1)), steps=steps)
    run(module, sft_rows(8 * steps))
    return adapter(module)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 2.0])
def test_soft_threshold_minimises_its_objective(threshold):
    values = torch.linspace(-2, 2, 9)
    for value, found in zip(values.tolist(), soft_threshold(values, threshold).tolist(), strict=True):
        best = minimize_scalar(lambda x, v=value: (x - v) ** 2 / 2 + threshold * abs(x), bounds=(-3, 3)).x
        assert found == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize("lr", [2e-2, 5e-2])
def test_with_adamw_on_a_quadratic_it_ends_at_the_soft_threshold(lr):
    """min |A - a|^2 / 2 + |B - b|^2 / 2 + 0.5 (|A|_1 + |B|_1), whatever the step size."""
    targets = factors()
    A, B = (torch.nn.Parameter(t.clone()) for t in factors(seed=1))
    optimizer = torch.optim.AdamW([A, B], lr=lr, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 3000)
    for _ in range(3000):
        optimizer.zero_grad()
        sum((p - t).square().sum() / 2 for p, t in zip((A, B), targets, strict=True)).backward()
        optimizer.step()
        proximal_step([(A, B, 1.0)], optimizer, of=L1Of.factors, weight=0.5)
        scheduler.step()

    for p, target in zip((A, B), targets, strict=True):
        expected = soft_threshold(target, 0.5)
        torch.testing.assert_close(p.detach(), expected, atol=2e-4, rtol=0)
        assert torch.equal(p == 0, expected == 0)


def test_rows_of_the_delta_step_as_far_as_their_own_objective_says():
    A, B = factors()
    metric_A, metric_B = (torch.rand_like(f) + 0.5 for f in (A, B))
    new_A, new_B, penalty = shrink(A, B, 2.0, metric_A, metric_B, step=0.05, of=L1Of.delta)

    delta = 2.0 * B @ A
    assert penalty == pytest.approx(float(delta.abs().sum()), rel=1e-5)
    for row, new, metric, size in zip(B, new_B, metric_B, delta.abs().sum(1), strict=True):
        energy = float((metric * row * row).sum())
        best = minimize_scalar(
            lambda a, e=energy, p=float(size): e * (1 - a) ** 2 / 2 + 0.05 * a * p, bounds=(0, 1)
        )
        torch.testing.assert_close(new, row * best.x, atol=1e-4, rtol=0)
    for column, new, metric, size in zip(A.T, new_A.T, metric_A.T, delta.abs().sum(0), strict=True):
        kept = max(0.0, 1 - 0.05 * float(size) / float((metric * column * column).sum()))
        torch.testing.assert_close(new, column * kept, atol=1e-5, rtol=0)


def test_a_delta_of_zero_is_left_where_it_is():
    A, B = factors()
    ones = torch.ones_like(A), torch.ones_like(B)
    new_A, new_B, penalty = shrink(A, torch.zeros_like(B), 1.0, *ones, step=1.0, of=L1Of.delta)
    assert torch.equal(new_A, A) and not new_B.any() and penalty == 0


@pytest.mark.parametrize("of", L1Of)
def test_training_gives_exact_zeros(of):
    found = trained(steps=16, weight=3e-4, of=of, method=L1Method.proximal)
    plain = trained(steps=16, weight=3e-4, of=of)
    factor_zeros, shares = 0, []
    for name, A in found.items():
        if "lora_A" in name:
            B = found[name.replace("lora_A", "lora_B")]
            factor_zeros += int((A == 0).sum() + (B == 0).sum())
            shares.append(layer_statistics(LowRank(A, B, 2.0))["share_zero"])
    assert factor_zeros > 0 and not any((p == 0).any() for p in plain.values())
    assert 0.05 < sum(shares) / len(shares) < 1


def test_lambda_0_is_plain_sft_bitwise():
    plain, found = trained(3), trained(3, weight=0.0, method=L1Method.proximal)
    assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_log_holds_the_penalty_as_the_other_method_does():
    logs = {}
    for method in L1Method:
        module = make(branch(SFTConfig, l1=L1Config(1e-4, method=method)), steps=2)
        logs[method] = run(module, sft_rows(16))[1]
    for log in logs.values():
        assert log["train/loss"] == pytest.approx(log["train/nll"] + log["train/l1"], rel=1e-5)
    # after one step from zero each method has moved a little differently
    sizes = [log["train/l1"] for log in logs.values()]
    assert sizes[0] > 0 and sizes[1] > 0


def test_a_step_that_was_left_out_shrinks_nothing():
    A, B = (torch.nn.Parameter(f) for f in factors())
    optimizer = torch.optim.AdamW([A, B])
    optimizer.step()
    assert proximal_step([(A, B, 1.0)], optimizer, of=L1Of.delta, weight=1.0) == 0
    assert torch.equal(A, factors()[0])
