"""The proximal step and the moving lambda: several processes do what one does, whole factors or shards."""

from pathlib import Path

import pandas as pd
import pytest
from ranks import adapter_of, train
from tiny import distance

SAME = 2e-5
"""As in test_strategies: the ranks' sums are added in another order, which Adam enlarges."""
SHORT = ("sft.lora.dropout=0", "sft.max_steps=4", "trainer.micro_batch_size=2")
OPTIONS = {
    "proximal": ("sft.l1.method=proximal", "lambda=1e-3"),
    "proximal factors": ("sft.l1.method=proximal", "sft.l1.of=factors", "lambda=1e-3"),
    "target": ("sft.l1.target_sparsity=0.9", "lambda=1e-3"),
    "both": (
        "sft.l1.method=proximal",
        "sft.l1.target_sparsity=0.9",
        "sft.l1.target_measure=zero",
        "lambda=1e-4",
    ),
}
RUNS = {
    "ddp 2": (2, ("strategy=ddp",)),
    "fsdp 2": (2, ("strategy=fsdp",)),
    "hybrid 2x2": (4, ("strategy=fsdp_hybrid", "strategy.shard_size=2")),
}
ALWAYS = {("both", "ddp 2"), ("both", "fsdp 2")}


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> Path:
    """Where all runs of this file find their rows."""
    return tmp_path_factory.mktemp("logs")


@pytest.mark.parametrize(
    ("options", "run"),
    [
        pytest.param(o, r, id=f"{o} {r}", marks=() if (o, r) in ALWAYS else pytest.mark.exhaustive)
        for o in OPTIONS
        for r in RUNS
    ],
)
def test_several_processes_give_the_adapter_of_one(logs, tmp_path, options, run):
    world, how = RUNS[run]
    one = train(logs, tmp_path / "one", "sft", *OPTIONS[options], *SHORT)
    several = train(logs, tmp_path / "several", "sft", *OPTIONS[options], *SHORT, *how, world=world)

    assert distance(adapter_of(several), adapter_of(one)) < SAME
    ours, theirs = (pd.read_csv(out / "history.csv") for out in (several, one))
    for column in {"train/l1", "train/lambda", "train/controlled_sparsity"} & {*theirs}:
        assert ours[column].tolist() == pytest.approx(theirs[column].tolist(), rel=1e-3, nan_ok=True), column
    assert ("train/lambda" in theirs) is ("target" in options or options == "both")
    if "proximal" in OPTIONS[options][0]:
        zeros = sum(int((p == 0).sum()) for p in adapter_of(several).values())
        assert zeros == sum(int((p == 0).sum()) for p in adapter_of(one).values())
