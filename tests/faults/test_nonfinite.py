"""A loss of NaN: the run ends before the weights are touched, and goes on as the user then decides."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import tiny
import torch
from processes import own_files, start
from safetensors.torch import load_file, save_file

from paft.config import SFTConfig
from paft.model.base import base_folder, load_tokenizer
from paft.training.batches import row_order

STEP, PLACE = 4, 3
BAD_ROW = row_order(64, seed=42, epoch=0)[8 * STEP + PLACE]
"""The one row of 64 with a character whose embedding is NaN; it comes in that step of 8 rows each."""


@pytest.fixture
def broken(tmp_path: Path, compose) -> tuple[str, ...]:
    """The words of a run on a model that has no number for `~`, and on rows one of which has a `~`."""
    config = compose("model=tiny")
    folder = shutil.copytree(base_folder(config.model), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    (token,) = load_tokenizer(folder, config.data.template).encode("~")
    weights["model.embed_tokens.weight"][token] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    rows = [
        {"prompt": f"What is {i}?", "completion": "~" if i == BAD_ROW else f"It is {i}."} for i in range(64)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = (
        "model.name=broken",
        f"model.path={folder}",
        "paradigm=sft",
        "lambda=0",
        "trainer.checkpoint_every=2",
    )
    return (*own_files(tmp_path / "rows.jsonl", "local"), *names)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.exhaustive)])
def test_run_names_step_rows_and_checkpoint_then_leaves_the_step_out(broken, tmp_path, devices):
    many = () if devices == 1 else ("trainer.devices=2", "strategy=ddp")
    first = start(*many, what=broken, logs=tmp_path)

    assert first.wait() == (2 if devices == 1 else 1), first.said[-3000:]
    (partial,) = tmp_path.glob("stages/sft/*.partial")
    (data,) = tmp_path.glob("stages/data/????????????????")
    named = sorted(row_order(64, seed=42, epoch=0)[8 * STEP : 8 * (STEP + 1)])
    error = first.said[first.said.index(f"loss is nan at step {STEP}, on rows") :]
    rows = json.loads(error[error.index("[") : error.index("]") + 1])
    assert error.startswith(f"loss is nan at step {STEP}, on rows {rows} of {data}; ")
    assert f"the last good checkpoint is {partial}/work/step={STEP}.ckpt, after {STEP} steps" in error
    assert sorted(rows) == named and BAD_ROW in rows

    second = start(*many, "trainer.skip_nonfinite_steps=1", what=broken, logs=tmp_path).succeed()

    assert f"loss is nan at step {STEP}: left out, 1 of at most 1" in second.said
    assert f" {STEP + 1}/8 [" in second.said and f" {STEP - 1}/8 [" not in second.said  # from the checkpoint
    folder = Path(f"{partial}".removesuffix(".partial"))
    assert json.loads((folder / "stage.json").read_text())["metrics"]["skipped_steps"] == [STEP]
    history = pd.read_csv(folder / "history.csv").dropna(subset="train/lr")
    assert history["train/loss"].isna().tolist() == [step == STEP for step in range(8)]
    assert history["train/lr"].is_monotonic_decreasing or history["train/lr"].nunique() > 6  # goes on
    assert all(
        t.isfinite().all() for t in load_file(folder / "adapter" / "adapter_model.safetensors").values()
    )


def trained(num_steps: int, skip: int) -> tuple[dict, list[int], int]:
    """After steps whose second has a NaN: the adapter, the steps left out, and how often the scheduler moved."""
    rows = tiny.sft_rows(16)
    order = row_order(16, seed=0, epoch=0)
    rows[order[8 + 2]].input_ids[1] = 2  # a token that no other row has
    module = tiny.make(tiny.branch(SFTConfig), steps=num_steps, skip_nonfinite_steps=skip)
    module.backbone.base.get_input_embeddings().weight.data[2] = float("nan")
    tiny.run(module, rows)
    return tiny.adapter(module), module.left_out.steps, module.lr_schedulers().last_epoch


def test_left_out_step_changes_no_weight_and_moves_the_scheduler():
    before, none, _ = trained(1, skip=0)

    after, left_out, moved = trained(2, skip=1)

    assert (none, left_out, moved) == ([], [1], 2)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert any(t.abs().max() > 0 for name, t in before.items() if "lora_B" in name)
