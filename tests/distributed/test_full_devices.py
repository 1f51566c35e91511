"""Full fine-tuning: one, two and four processes give the same deltas, whole or in shards."""

from pathlib import Path

import pandas as pd
import pytest
from ranks import train
from small_bases import small_base
from test_strategies import CHECKPOINTED, HYBRID, OFFLOAD
from tiny import distance
from torch import Tensor
from torch.multiprocessing.spawn import ProcessRaisedException

from paft.delta.statistics import dense, read_adapter
from paft.training.checkpoint import last_checkpoint

SAME = 2e-4
"""Relative distance of deltas after four steps, as in test_strategies, of many more weights whose gradient is near 0;
measured 1e-6 to 5e-6 in SFT, 5e-5 in DPO."""

SHORT = tuple(f"{b}.{s}" for b in ("sft", "preference") for s in ("tuning=full", "max_steps=4", "lr=1e-3"))
SHORT += ("trainer.micro_batch_size=2", "model.dtype=float32")
BRANCHES = {
    "sft+l1": ("sft", "lambda=1e-3"),
    "proximal": ("sft", "lambda=1e-3", "sft.l1.method=proximal"),
    "target": ("sft", "lambda=1e-4", "sft.l1.target_sparsity=0.9"),
    "dpo": ("preference", "preference=dpo"),
}
RUNS = {
    "ddp 2": (2, ("strategy=ddp",)),
    "fsdp 2": (2, ("strategy=fsdp",)),
    "hybrid 2x2": (4, HYBRID),
    "fsdp 2 both": (2, ("strategy=fsdp", OFFLOAD, CHECKPOINTED)),
    "checkpointing": (1, (CHECKPOINTED,)),
}
ALWAYS = {("sft+l1", run) for run in RUNS} | {("dpo", "ddp 2"), ("dpo", "fsdp 2"), ("proximal", "fsdp 2")}


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> Path:
    """Where all runs of this file find their rows."""
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def one(logs) -> dict[str, Path]:
    """What one process trained."""
    return {name: train(logs, logs / name, *how, *SHORT) for name, how in BRANCHES.items()}


def deltas_of(out: Path) -> dict[str, Tensor]:
    return {name: dense(delta) for name, delta in read_adapter(out / "delta").items()}


@pytest.mark.parametrize(
    ("branch", "run"),
    [
        pytest.param(b, r, id=f"{b} {r}", marks=() if (b, r) in ALWAYS else pytest.mark.exhaustive)
        for b in BRANCHES
        for r in RUNS
    ],
)
def test_several_processes_give_the_deltas_of_one(logs, one, tmp_path, branch, run):
    world, how = RUNS[run]
    several = train(logs, tmp_path / "out", *BRANCHES[branch], *SHORT, *how, world=world)

    found, expected = deltas_of(several), deltas_of(one[branch])
    assert distance(found, expected) < SAME
    ours, theirs = (pd.read_csv(out / "history.csv") for out in (several, one[branch]))
    for column in {"train/loss", "train/l1", "train/lambda", "train/grad_norm"} & {*theirs}:
        assert ours[column].tolist() == pytest.approx(theirs[column].tolist(), rel=1e-3, nan_ok=True), column
    # what is scored after training was scored with the trained weights, DPO's with the base's too
    scores = [name for name in theirs if name.startswith("validation/")]
    assert all(ours[n].iloc[-1] == pytest.approx(theirs[n].iloc[-1], rel=1e-3) for n in scores)


@pytest.mark.parametrize("run", ["ddp 2", "fsdp 2"])
def test_a_tied_head_stays_tied_in_several_processes(logs, tmp_path, run):
    small_base(tmp_path / "base", "llama", tie_word_embeddings=True)
    model = (
        "model=local",
        f"model.path={tmp_path / 'base'}",
        *SHORT,
        "lambda=1e-3",
        "sft.l1.method=proximal",
    )
    world, how = RUNS[run]
    one = train(logs, tmp_path / "one", "sft", *model)
    several = train(logs, tmp_path / "several", "sft", *model, *how, world=world)

    found, expected = deltas_of(several), deltas_of(one)
    assert "model.embed_tokens.weight" in found and "lm_head.weight" not in found
    assert distance(found, expected) < SAME


@pytest.mark.parametrize(("before", "after"), [("fsdp 2", "checkpointing"), ("checkpointing", "fsdp 2")])
def test_continued_by_another_number_of_processes(logs, one, tmp_path, before, after):
    (world, how), (other, then) = RUNS[before], RUNS[after]
    out, branch = tmp_path / "out", BRANCHES["sft+l1"]
    stop = ", stop_after: 3"
    with pytest.raises(ProcessRaisedException, match="Stopped: after step 3"):
        train(logs, out, *branch, *SHORT, *how, world=world, probe=stop)
    assert last_checkpoint(out)[0] == 2

    train(logs, out, *branch, *SHORT, *then, world=other)

    assert distance(deltas_of(out), deltas_of(one["sft+l1"])) < SAME
