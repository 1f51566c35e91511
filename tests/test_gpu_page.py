"""The table of docs/gpu.md is what plans say, and its strategies are those there are."""

import re

import pytest
from conftest import ROOT

from paft.config import StrategyName
from paft.graph.build import build
from paft.plan.estimate import Estimator
from paft.plan.precedents import Precedents
from paft.store.store import Store

PAGE = (ROOT / "docs/gpu.md").read_text(encoding="utf-8")
HEAD = "| base and what is trained | words | 1 GPU | 8, `ddp` | 8, `fsdp` |"
RECOMPUTED, FULL = "trainer.gradient_checkpointing=true", ("sft.tuning=full", "preference.tuning=full")
ROWS = {
    "Mistral-7B in four bits, LoRA": ("experiment=zephyr_mistral_7b_qlora",),
    "Mistral-7B, LoRA": ("experiment=zephyr_mistral_7b",),
    "the same, activations recomputed": ("experiment=zephyr_mistral_7b", RECOMPUTED),
    "Llama-3-8B, LoRA": ("experiment=zephyr_llama3_8b",),
    "Mistral-7B, all weights": ("experiment=zephyr_mistral_7b", *FULL),
}
ON = (
    ("trainer=gpu", "strategy=single"),
    ("trainer=a100x8", "strategy=ddp"),
    ("trainer=a100x8", "strategy=fsdp"),
)


@pytest.fixture
def gigabytes(compose, tmp_path):
    """Of the larger of both trainings, on one device."""

    def planned(*words: str) -> float:
        config = compose(*words, f"store={tmp_path}", "hardware=a100_80gb")
        estimate = Estimator(config, Store(config.store), Precedents([]))
        found = [estimate(stage).memory for stage in build(config).walk() if stage.kind.trains]
        return max(figure.value for figure in found if figure) / 1e9

    return planned


def test_what_fits_is_what_is_planned(gigabytes):
    lines = [HEAD, "|---|---|--:|--:|--:|"]
    for title, words in ROWS.items():
        cells = [f"{gigabytes(*words, *on):.0f}" for on in ON]
        lines.append(f"| {title} | `{' '.join(words)}` | {' | '.join(cells)} |")
    table = "\n".join(lines)

    assert f"\n\n{table}\n\n" in PAGE, f"the table is now\n{table}"


def test_every_strategy_is_spoken_of():
    assert {name.value for name in StrategyName} <= set(re.findall(r"`(\w+)`", PAGE))


def test_every_gpu_is_named():
    files = {path.stem for path in (ROOT / "conf/hardware").glob("*.yaml")} - {"auto", "cpu"}
    assert files <= set(re.findall(r"`(\w+)`", PAGE))
