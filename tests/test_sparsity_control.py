"""Lambda that moves: what is measured, how it moves, that it gets there, and that a resumed run moves it alike."""

import math
import warnings
from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch
from tiny import adapter, branch, make, move, run, sft_rows

from paft.config import L1Config, L1Method, L1Of, Schedule, SFTConfig, Sparsity
from paft.delta.statistics import LowRank, layer_statistics
from paft.graph.build import build
from paft.training.batches import StepLoader
from paft.training.sparsity_control import SAMPLE_ROWS, SparsityControl, measured_share

STATISTICS = {
    Sparsity.below_threshold: "share_below_1e-5",
    Sparsity.below_tenth_rms: "share_below_tenth_rms",
    Sparsity.zero: "share_zero",
}


def logit(share: float) -> float:
    return math.log(share / (1 - share))


def target(share: float = 0.9, **l1) -> SFTConfig:
    settings = {"weight": 1e-4, "target_sparsity": share} | l1
    return branch(SFTConfig, l1=L1Config(**settings), lr=5e-3, schedule=Schedule.cosine, warmup_ratio=0.1)


@pytest.mark.parametrize("measure", Sparsity)
def test_measure_is_the_mean_over_layers_of_sparsity_json(measure):
    module = move(make(target()), scale=1e-5)
    factors = module.backbone.factors()
    for _, B, _ in factors:
        B.data[::3] = 0
    assert max(len(B) for _, B, _ in factors) < 2 * SAMPLE_ROWS, "else only some rows would be looked at"

    shares = [
        layer_statistics(LowRank(A.detach(), B.detach(), s))[STATISTICS[measure]] for A, B, s in factors
    ]
    assert measured_share(factors, measure) == pytest.approx(sum(shares) / len(shares), abs=1e-6)
    assert 0.3 < sum(shares) / len(shares) < 1


def test_a_large_layer_is_sampled_over_all_its_rows():
    B = torch.zeros(100 * SAMPLE_ROWS, 2)
    B[: 50 * SAMPLE_ROWS] = 1
    assert measured_share([(torch.ones(2, 3), B, 1.0)], Sparsity.zero) == pytest.approx(0.5, abs=0.01)


def test_lambda_moves_by_the_formula():
    control = SparsityControl(
        L1Config(1e-3, target_sparsity=0.8, target_gain=5.0), num_steps=100, first_step=10
    )
    assert not control.due(0) and not control.due(9) and control.due(10)

    control.update(0.3, 50)  # 0.8 is wanted after 90 steps
    control.update(0.5, 51)

    wanted = [0.8 * step / 90 for step in (50, 51)]
    first, second = (logit(w) - logit(s) for w, s in zip(wanted, (0.3, 0.5), strict=True))
    moved = 5 / 100 * (first + second) + 0.5 * (second - first)
    assert control.weight == pytest.approx(1e-3 * math.exp(moved))


@pytest.mark.parametrize(("measured", "grows"), [(0.1, True), (0.7, False)])
def test_lambda_grows_exactly_where_too_little_is_sparse(measured, grows):
    control = SparsityControl(L1Config(1e-3, target_sparsity=0.8), num_steps=100, first_step=0)
    control.update(measured, 50)
    assert (control.weight > 1e-3) is grows


PROXIMAL = {"method": L1Method.proximal}
ZEROS = PROXIMAL | {"target_measure": Sparsity.zero}


@pytest.mark.parametrize(("fixed", "moving"), [({}, {}), (PROXIMAL, ZEROS)], ids=["from below", "from above"])
def test_target_is_reached_where_the_same_lambda_fixed_misses_it(fixed, moving):
    config = target(0.9, weight=1e-3, **moving)
    module, plain = make(config, steps=64), make(replace(config, l1=L1Config(1e-3, **fixed)), steps=64)
    logs, _ = (run(m, sft_rows(512)) for m in (module, plain))

    reached, missed = (
        measured_share(m.backbone.factors(), config.l1.target_measure) for m in (module, plain)
    )
    assert abs(reached - 0.9) < 0.05 < abs(missed - 0.9)
    weights = [row["train/lambda"] for row in logs if "train/lambda" in row]
    assert len(weights) == 64 and len(set(weights)) > 50
    assert sum("train/controlled_sparsity" in row for row in logs) == 64 - 7  # after ceil(0.1 * 64) steps


def test_target_and_a_lambda_of_0_exclude_each_other():
    with pytest.raises(ValueError, match=r"target_sparsity=0.9 moves lambda by factors.*lambda=1e-4"):
        L1Config(0.0, target_sparsity=0.9)


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, 90.0])
def test_a_target_is_a_share(share):
    with pytest.raises(ValueError, match=r"sft\.l1\.target_sparsity must be between 0 and 1"):
        L1Config(1e-4, target_sparsity=share)


def fit(module, rows, *, until: int, out: Path, ckpt: Path | None = None) -> None:
    loader = StepLoader(rows, global_batch_size=8, steps=module.num_steps, seed=0)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=until,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader, ckpt_path=ckpt, weights_only=True)
    trainer.save_checkpoint(out)


@pytest.mark.parametrize("l1", [{}, ZEROS], ids=["subgradient", "proximal"])
def test_resumed_run_is_bitwise_the_straight_one(tmp_path, l1):
    warnings.filterwarnings("ignore", module="lightning")
    config, rows = target(0.5, target_every=2, **l1), sft_rows(80)
    straight, begun, resumed = (make(config, steps=10) for _ in range(3))
    fit(straight, rows, until=10, out=tmp_path / "straight.ckpt")
    fit(begun, rows, until=5, out=tmp_path / "half.ckpt")

    fit(resumed, rows, until=10, out=tmp_path / "resumed.ckpt", ckpt=tmp_path / "half.ckpt")

    assert straight.control.state() == resumed.control.state() != begun.control.state()
    assert all(torch.equal(p, adapter(resumed)[name]) for name, p in adapter(straight).items())


# --- keys ----------------------------------------------------------------------------------------------


def test_plain_sft_is_one_training_however_it_is_put(compose):
    words = ("experiment=smoke", "lambda=0")
    plain = build(compose(*words)).key
    assert plain == build(compose(*words, "sft.l1.of=factors", "sft.l1.method=proximal")).key


def test_options_enter_the_key_only_where_they_are_set(compose):
    def key(*more: str) -> str:
        return build(compose("experiment=smoke", "lambda=1e-4", *more)).key

    default = key()
    assert key("sft.l1.method=subgradient", "sft.l1.target_sparsity=null") == default
    changed = {key("sft.l1.method=proximal"), key("sft.l1.target_sparsity=0.9"), key("sft.l1.of=factors")}
    assert len(changed | {default}) == 4


def test_options_reach_the_module(compose):
    l1 = compose("sft.l1.target_sparsity=0.9", "sft.l1.target_measure=zero", "sft.l1.method=proximal").sft.l1
    assert (l1.weight, l1.of, l1.method) == (1e-4, L1Of.delta, L1Method.proximal)
    assert (l1.target_sparsity, l1.target_measure) == (0.9, Sparsity.zero)
