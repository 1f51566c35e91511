"""Recorded numbers of six steps of each branch and of an evaluation: a change that moves them is noticed."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import branch, make, rows_for, run
from transformers import AutoModelForCausalLM

from paft.config import DType, EvaluateConfig, L1Config, Schedule, SFTConfig, TaskConfig, Template, TinyModel
from paft.evaluate.stage import score_tasks
from paft.graph import stages
from paft.model.base import base_folder, load_tokenizer
from paft.objectives import DPO, KTO, ORPO
from paft.proof.base import load_base

FILE = Path(__file__).parent / "golden/training.json"
DEFAULT = TinyModel(name="tiny", dtype=DType.float32)
SETTINGS = {"schedule": Schedule.cosine, "warmup_ratio": 0.2, "max_grad_norm": 1.0, "weight_decay": 0.01}
BRANCHES = {
    "sft": branch(SFTConfig, l1=L1Config(1e-3), **SETTINGS),
    "dpo": branch(DPO, **SETTINGS),
    "orpo": branch(ORPO, **SETTINGS),
    "kto": branch(KTO, beta=0.5, **SETTINGS),
}
STAGES = {
    "sft": "sft",
    "dpo": "preference",
    "orpo": "preference",
    "kto": "preference",
    "evaluate": "evaluate",
}
TASKS = {
    "tool_call": TaskConfig(task="paft_tool_call", metric="exact_match,none"),
    "honesty": TaskConfig(task="paft_honesty", metric="acc,none"),
    "mmlu_dev": TaskConfig(task="paft_mmlu_dev", metric="acc,none"),
    "bits": TaskConfig(task="paft_mmlu_dev", metric="bits_per_byte,none"),
}
MOVED = (
    "{name} moved. If by accident, this change has a bug. If on purpose, raise the version in "
    "paft.graph.stages.STAGES[{stage!r}], so that no stored result is taken for a new one, then run this file as a "
    "script to record anew"
)


def losses(name: str) -> list[float]:
    config = BRANCHES[name]
    logs = run(make(config, steps=6, micro_batch_size=4), rows_for(config, 24))
    return [row["train/loss"] for row in logs]


def scores() -> dict[str, float]:
    folder = base_folder(DEFAULT)
    config = EvaluateConfig(name="golden", limit=8, apply_chat_template=True, tasks=TASKS)
    found, _ = score_tasks(load_base(folder, DEFAULT), load_tokenizer(folder, Template.chatml), config)
    return {column: s.score for column, s in found.items()}


def recorded() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(FILE.read_text())
    return data


def rule(name: str) -> str:
    return MOVED.format(name=name, stage=STAGES[name])


@pytest.mark.parametrize("name", BRANCHES)
def test_losses_have_not_moved(name):
    # another processor's BLAS sums in another order: last bits differ at step 0 and grow a little with each step
    assert losses(name) == pytest.approx(recorded()[name], rel=1e-4), rule(name)


def test_scores_have_not_moved():
    assert scores() == pytest.approx(recorded()["evaluate"], rel=1e-4), rule("evaluate")


def test_numbers_were_recorded_under_these_versions():
    """A raised version means moved numbers: they must have been recorded again."""
    kept = {stage: stages.STAGES[stage].version for stage in set(STAGES.values())}
    assert recorded()["versions"] == kept, f"run python {FILE.parents[1].name}/{Path(__file__).name}"


def test_message_says_what_to_raise():
    assert "paft.graph.stages.STAGES['preference']" in rule(
        "orpo"
    ) and "paft.graph.stages.STAGES['evaluate']" in rule("evaluate")


def test_tolerance_is_far_below_what_a_change_moves():
    """Twice the penalty, or a mean over rows, moves a loss by much more than the tolerance."""
    numbers = recorded()
    assert numbers["sft"][-1] != pytest.approx(numbers["sft"][-2], rel=1e-4)
    config = branch(SFTConfig, l1=L1Config(2e-3), **SETTINGS)
    moved = [
        row["train/loss"] for row in run(make(config, steps=6, micro_batch_size=4), rows_for(config, 24))
    ]
    assert moved != pytest.approx(numbers["sft"], rel=1e-4)


if __name__ == "__main__":
    weight = (
        AutoModelForCausalLM.from_pretrained(base_folder(DEFAULT)).model.layers[0].self_attn.q_proj.weight
    )
    numbers = {
        "versions": {stage: stages.STAGES[stage].version for stage in sorted(set(STAGES.values()))},
        **{name: losses(name) for name in BRANCHES},
        "evaluate": scores(),
        "q_proj_sum": weight.detach().double().sum().item(),
    }
    lines = ",\n".join(f' "{name}": {json.dumps(value)}' for name, value in numbers.items())
    FILE.write_text("{\n" + lines + "\n}\n")
