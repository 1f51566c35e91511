"""The `reference` stage says what the base says of a pair, and DPO trained with it is DPO with both forwarded."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tiny import BRANCHES, PAD, distance, make, pairs, whole_batch

from paft.command.pipeline import context_of
from paft.config import RunConfig
from paft.data.tokens import read_preference
from paft.forward.pairs import two_row_tensors
from paft.graph.build import build, unique
from paft.graph.configs import FirstSteps
from paft.graph.stage import Stage
from paft.model.base import base_folder
from paft.proof.base import load_base
from paft.store.store import Store
from paft.training.batches import StepLoader
from paft.training.reference import FILE, ScoredPair, rows_read, score_pairs, scored

ADAPTER = Path("adapter") / "adapter_model.safetensors"
SMOKE = ("experiment=smoke", "callbacks=none")


def made(config: RunConfig, name: str) -> tuple[Stage, Path]:
    """The cell's stage of that name, and its finished folder."""
    cell = build(config)
    (stage,) = (s for s in cell.walk() if s.name == name)
    context = context_of(config, Store(config.store), cell)
    return stage, context.store.ensure(stage, context.run)


@pytest.mark.parametrize("paradigm", ["parallel", "sequential"])
def test_scores_against_plain_transformers(compose, tmp_path, paradigm):
    config = compose(*SMOKE, f"paradigm={paradigm}", "preference.max_steps=4", f"logs={tmp_path}")
    stage, folder = made(config, "reference")
    store = Store(config.store)
    rows = read_preference(store.path(stage.inputs["data"]), "train")
    base = load_base(base_folder(config.model), config.model)
    if paradigm == "sequential":
        from paft.model.adapters import add_deltas

        add_deltas(base, [store.path(stage.inputs["sft"]) / "adapter"], base_folder(config.model))

    scores = pd.read_parquet(folder / FILE)

    assert len(scores) == 4 * config.preference.global_batch_size < len(rows)
    for i, chosen, rejected in scores.head(6).itertuples(index=False):
        ids, labels, *_ = two_row_tensors([rows[i]], 0)
        logps = torch.log_softmax(base(ids).logits[:, :-1].float(), -1)
        picked = logps.gather(2, labels[:, 1:].clamp(min=0)[..., None]).squeeze(2) * (labels[:, 1:] >= 0)
        # float32 sums over some dozens of tokens, in another order
        torch.testing.assert_close(torch.tensor([chosen, rejected]), picked.sum(1), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_adapter_against_online_reference(compose, tmp_path, loss):
    words = (*SMOKE, f"preference.loss={loss}", "preference.max_steps=4", f"logs={tmp_path}")
    staged, online = (
        load_file(
            made(compose(*words, f"preference.reference={source}"), "preference")[1]
            / "adapter"
            / "adapter_model.safetensors"
        )
        for source in ("stage", "online")
    )
    # The reference is summed in batches of another make-up; where a gradient is near 0, Adam enlarges its last bits:
    # up to 1.3e-5 measured
    assert distance(staged, online) < 1e-4
    assert any(expected.any() for name, expected in online.items() if "lora_B" in name)


def test_every_beta_and_every_seed_shares_one_reference(compose):
    words = ("experiment=smoke", "preference.max_steps=null")
    cells = [
        build(compose(*words, f"preference.beta={beta}", f"seed={seed}"))
        for beta in (0.1, 0.5)
        for seed in (1, 2)
    ]
    names = [stage.name for stage in unique(cells)]
    assert (names.count("preference"), names.count("reference")) == (4, 1)


def test_every_loss_and_seed_of_kto_shares_one_reference(compose):
    words = ("experiment=smoke", "preference=kto", "preference.max_steps=null")
    cells = [
        build(compose(*words, f"preference.loss={loss}", f"seed={seed}", "preference.desirable_weight=1.3"))
        for loss in ("kto", "apo_zero_unpaired")
        for seed in (1, 2)
    ]
    names = [stage.name for stage in unique(cells)]
    assert (names.count("preference"), names.count("reference")) == (4, 1)


def test_orpo_and_online_dpo_have_no_reference(compose):
    for words in (("preference=orpo",), ("preference.reference=online",)):
        assert "reference" not in {s.name for s in build(compose("experiment=smoke", *words)).walk()}


@pytest.mark.parametrize("steps", [1, 3, 5, 11])
def test_rows_read_are_those_of_the_steps(steps):
    rows = pairs(22)
    batches = StepLoader(rows, global_batch_size=4, steps=steps, seed=3)
    read = {rows.index(row) for batch in batches for row in batch.rows}
    wanted = rows_read(len(rows), FirstSteps(steps, 4, 3))
    assert read <= set(wanted)
    assert steps >= 5 or sorted(read) == wanted
    assert rows_read(len(rows), None) == list(range(22))


def test_reference_of_another_row_is_refused(tmp_path, compose):
    module, rows, settings = make(BRANCHES["dpo"]), pairs(8), compose("experiment=smoke").trainer
    scores = score_pairs(module.backbone, dict(enumerate(rows)), PAD, settings)
    scores.to_parquet(tmp_path / FILE)
    right = scored(rows, tmp_path)
    assert all(isinstance(row, ScoredPair) for row in right)
    module.micro_loss(right, whole_batch(right))

    scores["row"] = scores["row"].to_numpy()[::-1]
    scores.to_parquet(tmp_path / FILE)
    wrong = scored(rows, tmp_path)
    with pytest.raises(
        ValueError, match=r"before the first step .* the reference is of another model or other rows"
    ):
        module.micro_loss(wrong, whole_batch(wrong))


def test_a_killed_run_goes_on_after_the_parts_it_has(compose, tmp_path, monkeypatch):
    config = compose(*SMOKE, "preference.max_steps=null", f"logs={tmp_path}")
    monkeypatch.setattr("paft.training.reference.PART_ROWS", 16)
    stage, folder = made(config, "reference")
    whole = pd.read_parquet(folder / FILE)
    store = Store(config.store)
    partial = tmp_path / "again"
    partial.mkdir()
    first = whole.head(16).assign(chosen_logps=-1.0)  # to be told from scores made anew
    first.to_parquet(partial / "part-000000000.parquet", index=False)

    inputs = {name: store.path(s) for name, s in stage.inputs.items()}
    context_of(config, store, stage).run(stage, inputs, partial)

    again = pd.read_parquet(partial / FILE)
    assert (again["chosen_logps"].head(16) == -1.0).all()
    pd.testing.assert_frame_equal(again.tail(len(whole) - 16), whole.tail(len(whole) - 16))
    assert [p.name for p in partial.iterdir()] == [FILE]
