"""The objectives against plain autograd, by hand, and at their edges; TRL parity is in tests/parity."""

import math

import pytest
import torch
import torch.nn.functional as F

from paft.device import CPU, CUDA
from paft.logps import Head, label_logps
from paft.losses import (
    IGNORE,
    dpo_loss,
    kto_loss,
    l1_penalty,
    log1mexp,
    orpo_loss,
    reference_point,
    sequence_logps,
    sft_loss,
)
from paft.losses.preference import divergence_score
from paft.objectives import DPOLoss

B, T, H, V = 3, 11, 8, 50


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(B, T, H, generator=generator, requires_grad=True)
    head = torch.randn(V, H, generator=generator)
    labels = torch.randint(0, V, (B, T), generator=generator)
    labels[:, :4] = IGNORE
    labels[2, 7:] = IGNORE
    return hidden, head, labels


def test_label_logps_from_head_against_logits(batch):
    hidden, head, labels = batch
    from_head = label_logps(hidden, labels, head)
    from_logits = label_logps(hidden @ head.T, labels)
    torch.testing.assert_close(from_head, from_logits)


def test_head_gradient_against_autograd(batch):
    hidden, head, labels = batch
    weights = torch.linspace(-1, 2, B)
    (weights * sequence_logps(hidden, labels, head)).sum().backward()
    ours, hidden.grad = hidden.grad.clone(), None
    (weights * sequence_logps(hidden @ head.T, labels)).sum().backward()
    # float32 sums over V = 50 terms in another order
    torch.testing.assert_close(ours, hidden.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.25, None), (1.0, 5.0), (0.5, 3.0)])
@pytest.mark.parametrize("biased", [False, True])
def test_head_with_bias_scale_and_cap_against_autograd(batch, biased, scale, cap):
    hidden, weight, labels = batch
    bias = torch.linspace(-2, 2, V) if biased else None
    logits = scale * F.linear(hidden, weight, bias)
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    rows = torch.linspace(-1, 2, B)
    right = sequence_logps(logits, labels)
    ours = sequence_logps(hidden, labels, Head(weight, bias, scale, cap))
    torch.testing.assert_close(ours, right)
    (gradient,) = torch.autograd.grad((rows * ours).sum(), hidden)
    (wanted,) = torch.autograd.grad((rows * right).sum(), hidden)
    torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("block", [1, 2, CPU.head_block, CUDA.head_block])
def test_head_blocks_of_any_device_against_autograd(batch, block):
    hidden, head, labels = batch
    ours, right = label_logps(hidden, labels, head, block_N=block), label_logps(hidden @ head.T, labels)
    torch.testing.assert_close(ours, right)
    pull = torch.linspace(-1, 2, right.numel()).view_as(right)
    (gradient,), (wanted,) = (torch.autograd.grad((pull * x).sum(), hidden) for x in (ours, right))
    torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-4)


def test_sft_loss_against_cross_entropy(batch):
    hidden, head, labels = batch
    logits = hidden @ head.T
    expected = F.cross_entropy(logits[:, :-1].reshape(-1, V), labels[:, 1:].reshape(-1), ignore_index=IGNORE)
    torch.testing.assert_close(sft_loss(logits, labels), expected)


def test_sft_loss_of_micro_batches_adds_up(batch):
    hidden, head, labels = batch
    num_tokens = int((labels[:, 1:] != IGNORE).sum())
    parts = [sft_loss(hidden[i : i + 1], labels[i : i + 1], head, num_tokens=num_tokens) for i in range(B)]
    torch.testing.assert_close(sum(parts), sft_loss(hidden, labels, head))


def test_row_without_labels_gives_zero():
    logits = torch.randn(1, 4, V)
    assert sequence_logps(logits, torch.full((1, 4), IGNORE), mean=True).item() == 0


def test_dpo_loss_is_log_two_where_policy_is_reference():
    logps = torch.tensor([-3.0, -7.0])
    losses = dpo_loss(logps, logps - 1, logps, logps - 1, beta=0.3)
    torch.testing.assert_close(losses, torch.full((2,), math.log(2)))


def test_dpo_label_smoothing_mixes_both_labels():
    args = [torch.tensor([x]) for x in (-1.0, -2.0, -1.5, -1.0)]
    flipped = dpo_loss(args[1], args[0], args[3], args[2], beta=0.5)
    expected = 0.8 * dpo_loss(*args, beta=0.5) + 0.2 * flipped
    torch.testing.assert_close(dpo_loss(*args, beta=0.5, label_smoothing=0.2), expected)


def test_unknown_dpo_loss_names_the_choices():
    zero = torch.zeros(1)
    with pytest.raises(ValueError, match=r"discopop or dpop, got 'kto'"):
        dpo_loss(zero, zero, zero, zero, beta=1, loss="kto")


def test_kto_loss_by_hand():
    """A good answer two nats above the reference, a bad one a nat above it, a bad one far below; the point at 0.5."""
    logps, good = torch.tensor([-3.0, -4.0, -90.0]), torch.tensor([True, False, False])
    reference = torch.tensor([-5.0, -5.0, -5.0])

    found = kto_loss(logps, reference, good, kl=0.5, beta=0.2, desirable_weight=1.5, undesirable_weight=2.0)

    sigmoid = [1 / (1 + math.exp(-x)) for x in (0.2 * 1.5, -0.2 * 0.5, 0.2 * 85.5)]
    expected = [1.5 * (1 - sigmoid[0]), 2 * (1 - sigmoid[1]), 2 * (1 - sigmoid[2])]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_reference_point_adds_up_over_parts_is_no_less_than_zero_and_has_no_gradient():
    ratios = torch.tensor([1.0, -0.5, 2.5, 1.0], requires_grad=True)
    whole = reference_point(ratios, 4)
    assert whole.item() == 1.0 and not whole.requires_grad
    assert reference_point(torch.stack([ratios[:1].sum(), ratios[1:].sum()]), 4) == whole
    assert reference_point(-ratios, 4) == 0


def test_log1mexp_against_float64():
    x = torch.tensor([-50.0, -5.0, -1.0, -0.7, -0.69, -0.1, -1e-3, -1e-6])
    expected = torch.log(-torch.expm1(x.double()))
    torch.testing.assert_close(log1mexp(x).double(), expected, atol=1e-6, rtol=1e-6)


def test_orpo_is_finite_with_finite_gradient_at_logprob_zero():
    chosen = torch.tensor([0.0, -1e-9, -0.5], requires_grad=True)
    rejected = torch.tensor([-0.5, 0.0, 0.0], requires_grad=True)
    losses = orpo_loss(chosen, rejected, torch.zeros(3), beta=0.1)
    losses.sum().backward()
    for value in (losses, chosen.grad, rejected.grad):
        assert torch.isfinite(value).all(), value


def factors(scale: float = 1.0) -> list[tuple[torch.Tensor, torch.Tensor, float]]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(4, 20, 30), (8, 17, 5)]
    return [
        (
            torch.randn(r, n, generator=generator).requires_grad_(),
            torch.randn(m, r, generator=generator).requires_grad_(),
            scale,
        )
        for r, m, n in shapes
    ]


@pytest.mark.parametrize("block_rows", [1, 3, CPU.delta_rows, CUDA.delta_rows])
def test_l1_of_delta_against_autograd(block_rows):
    ours, plain = factors(0.5), factors(0.5)
    penalty = l1_penalty(ours, block_rows=block_rows)
    expected = sum((s * B @ A).abs().sum() for A, B, s in plain)
    torch.testing.assert_close(penalty, expected)
    (3 * penalty).backward()
    (3 * expected).backward()
    for (A, B_, _), (A_plain, B_plain, _) in zip(ours, plain, strict=True):
        torch.testing.assert_close(A.grad, A_plain.grad, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(B_.grad, B_plain.grad, atol=1e-5, rtol=1e-5)


def test_l1_at_a_fresh_adapter_has_the_gradient_of_autograd():
    A, B_, s = factors()[0]
    B_ = torch.zeros_like(B_).requires_grad_()
    l1_penalty([(A, B_, s)]).backward()
    assert A.grad.abs().max() == 0 and B_.grad.abs().max() == 0  # sign(0) = 0, as torch.abs has it


def test_l1_of_factors_against_autograd():
    ours = factors()
    expected = sum(A.abs().sum() + B.abs().sum() for A, B, _ in ours)
    torch.testing.assert_close(l1_penalty(ours, of="factors"), expected)


def test_l1_never_holds_a_whole_delta():
    rank, rows, columns, block = 4, 4096, 512, 16
    A, B_ = torch.randn(rank, columns, requires_grad=True), torch.randn(rows, rank, requires_grad=True)
    with torch.profiler.profile(
        profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]
    ) as profile:
        l1_penalty([(A, B_, 1.0)], block_rows=block).backward()
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest < rows * columns * 4 / 8, "an allocation of the size of the delta"


LOSSES = [loss.value for loss in DPOLoss]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("size", [1e-6, 1.0, 30.0, 1e4])
def test_every_dpo_loss_and_its_gradient_are_finite(loss, size):
    """Log-ratios from rounding to whole answers that one policy finds impossible."""
    ratios = [
        size * torch.tensor(x, requires_grad=True) for x in ([1.0, -1.0, 1.0, -1.0], [1.0, 1.0, -1.0, -1.0])
    ]
    zero = torch.zeros(4)
    eps = 0.1 if loss in ("robust", "exo_pair") else 0.0

    losses = dpo_loss(*ratios, zero, zero, beta=0.1, loss=loss, label_smoothing=eps)

    gradients = torch.autograd.grad(losses.sum(), ratios, allow_unused=True)
    assert losses.shape == (4,) and torch.isfinite(losses).all()
    assert all(torch.isfinite(g).all() for g in gradients if g is not None)


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss != "discopop"])
def test_dpo_losses_fall_as_the_margin_grows(loss):
    """From the reference's own place, where training begins; DiscoPOP, which a search found, rises there at first."""
    zero = torch.zeros(1)
    eps = 0.1 if loss in ("robust", "exo_pair") else 0.0
    at = [torch.zeros(1, requires_grad=True) for _ in range(2)]
    dpo_loss(*at, zero, zero, beta=0.1, loss=loss, label_smoothing=eps).sum().backward()
    chosen, rejected = (float(x.grad) for x in at)
    assert rejected > 0
    assert chosen - rejected < 0


def test_dpop_loss_against_its_paper():
    """Equation 3 of Pal et al. 2024, written out in float64."""
    policy, reference = ([-3.0, -1.0], [-4.0, -2.5]), ([-2.0, -2.0], [-3.0, -2.0])
    beta, weight = 0.3, 5.0
    expected = []
    for chosen, rejected, ref_w, ref_l in zip(*policy, *reference, strict=True):
        penalty = weight * max(0.0, ref_w - chosen)
        expected.append(
            -math.log(1 / (1 + math.exp(-beta * ((chosen - ref_w) - (rejected - ref_l) - penalty))))
        )
    tensors = [torch.tensor(x) for x in (*policy, *reference)]
    assert dpo_loss(*tensors, beta=beta, loss="dpop", dpop_lambda=weight).tolist() == pytest.approx(expected)


def test_losses_that_hold_the_chosen_answer_up_pull_it_when_both_fall():
    """Both answers less likely than under the reference by the same: DPO sees nothing, these see the chosen one."""
    zero = torch.zeros(1)
    pulls = {}
    for loss in ("sigmoid", "dpop", "nca_pair", "bco_pair"):
        chosen, rejected = (torch.full((1,), -20.0, requires_grad=True) for _ in range(2))
        dpo_loss(chosen, rejected, zero, zero, beta=0.1, loss=loss).sum().backward()
        pulls[loss] = float(
            -chosen.grad + -rejected.grad
        )  # along both: a shift that leaves the margin as it is
    assert pulls.pop("sigmoid") == pytest.approx(0, abs=1e-7)
    assert all(pull > 0.01 for pull in pulls.values()), pulls


def test_alpha_divergence_nears_the_reverse_kl_as_alpha_nears_one():
    ratio = torch.linspace(-3, 3, 7)
    near = divergence_score(ratio.double(), "alpha_divergence", 1 + 1e-6)
    torch.testing.assert_close(near, ratio.double(), atol=1e-5, rtol=1e-5)
