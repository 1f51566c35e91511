"""The reference and the base, sequential training, determinism, and a loss that is not finite."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from tiny import (
    BFLOAT16,
    BRANCHES,
    MODEL,
    PAD,
    SAME,
    adapter,
    branch,
    distance,
    gradient_of_a_step,
    make,
    move,
    pairs,
    rows_for,
    run,
    sft_rows,
)

from paft.config import LoraConfig
from paft.delta.statistics import read_adapter
from paft.forward.pairs import two_row_tensors
from paft.logps import label_logps
from paft.losses import IGNORE
from paft.model.adapters import add_deltas
from paft.model.base import base_folder
from paft.objectives import DPO
from paft.proof.base import load_base
from paft.training.preference import refuse_moved_start

# --- reference and base --------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [MODEL, BFLOAT16], ids=["float32", "bfloat16"])
def test_margins_are_exactly_zero_before_the_first_step(model):
    first, second = run(make(BRANCHES["dpo"], steps=2, model=model), pairs(16))
    assert first["train/margins"] == first["train/chosen_rewards"] == first["train/rejected_rewards"] == 0
    assert first["train/loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert second["train/margins"] != 0


def test_reference_is_the_base_model_whatever_the_adapter_and_its_dropout():
    module = move(make(branch(DPO, lora=LoraConfig(rank=4, alpha=8, dropout=0.5))))
    ids, labels, _, lengths, *_ = two_row_tensors(pairs(4), PAD)
    with module.backbone.reference():
        ours = module.backbone(ids, labels, lengths)
    logits = load_base(base_folder(MODEL), MODEL)(input_ids=ids).logits
    torch.testing.assert_close(ours, label_logps(logits, labels))
    assert not torch.allclose(module.backbone(ids, labels, lengths), ours, atol=1e-2)
    assert not ours.requires_grad


def test_an_adapter_that_does_not_start_at_zero_is_refused():
    with pytest.raises(ValueError, match=r"differ by .* before the first step .*; they must be equal"):
        run(move(make(BRANCHES["dpo"])), pairs(8))


def test_one_short_answer_may_be_off_by_rounding_and_a_whole_pass_may_not():
    """-6.8 and -6.6 were seen for 12 tokens in bfloat16; a reference of other rows is off in every answer."""
    reference, tokens = torch.tensor([-6.62, -30.0, -41.0, -9.0]), torch.full((4,), 12.0)
    refuse_moved_start(reference - torch.tensor([0.19, 0, 0, 0]), reference, tokens, allowed=0.05)
    with pytest.raises(
        ValueError, match=r"differ by 0\.\d+ of their size before the first step \(most in -41 and"
    ):
        refuse_moved_start(reference, reference.flip(0), tokens, allowed=0.05)
    with pytest.raises(ValueError, match=r"differ by nan"):
        refuse_moved_start(reference * float("nan"), reference, tokens, allowed=0.05)


@pytest.mark.parametrize("name", ["sft+l1", "dpo", "orpo"])
def test_only_factors_are_trained_and_the_base_stays_bitwise(name):
    config = BRANCHES[name]
    module = make(config, steps=3, model=BFLOAT16)
    frozen = {n: p for n, p in module.named_parameters() if not p.requires_grad}
    before = {n: p.clone() for n, p in frozen.items()}
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    start = {n: p.detach().clone() for n, p in trained.items()}

    run(module, rows_for(config, 24))

    assert {p.dtype for p in frozen.values()} == {torch.bfloat16}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert all("lora_A" in n or "lora_B" in n for n in trained) and len(trained) == 2 * 7 * 2
    assert all(torch.equal(p, before[n]) for n, p in frozen.items())
    assert all(not torch.equal(p, start[n]) for n, p in trained.items())


# --- sequential ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """An adapter folder with a delta large enough to matter."""
    module = move(make(BRANCHES["sft"]))
    folder = tmp_path_factory.mktemp("sft") / "adapter"
    module.backbone.save(folder, {})
    return folder


def merged_by_peft(folder: Path) -> torch.nn.Module:
    return PeftModel.from_pretrained(load_base(base_folder(MODEL), MODEL), str(folder)).merge_and_unload()


def test_sequential_base_against_merge_and_unload(saved):
    module = make(BRANCHES["dpo"], deltas=(saved,))
    ids = torch.arange(3, 40)[None]
    ours = module.backbone.peft(input_ids=ids).logits
    theirs = merged_by_peft(saved)(input_ids=ids).logits
    base = load_base(base_folder(MODEL), MODEL)(input_ids=ids).logits
    torch.testing.assert_close(ours, theirs)
    assert (ours - base).abs().max() > 1e-3, "the delta must be there to be tested"


def test_sequential_reference_is_the_sft_model(saved):
    (first,) = run(make(BRANCHES["dpo"], deltas=(saved,)), pairs(8))
    assert first["train/margins"] == 0
    ids, labels, *_ = two_row_tensors(pairs(8), PAD)
    logits = merged_by_peft(saved)(input_ids=ids).logits
    logps = F.log_softmax(logits[:, :-1], -1).gather(2, labels[:, 1:].clamp(min=0)[..., None]).squeeze(2)
    expected = (logps * (labels[:, 1:] != IGNORE)).sum(1)[:8].mean().item()
    assert first["train/chosen_logps"] == pytest.approx(expected, rel=1e-5)


def test_two_deltas_are_added_before_the_one_cast_to_bfloat16(saved):
    base = load_base(base_folder(BFLOAT16), BFLOAT16)
    plain = {n: p.clone() for n, p in base.named_parameters()}
    add_deltas(base, [saved, saved], base_folder(BFLOAT16))
    name = "model.layers.0.self_attn.q_proj.weight"
    expected = (plain[name].float() + 2 * read_adapter(saved)[name].dense()).bfloat16()
    assert torch.equal(dict(base.named_parameters())[name], expected)


# --- determinism ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("name", ["sft+l1", "dpo"])
def test_a_seed_gives_one_adapter(name, dropout):
    config = dataclasses.replace(BRANCHES[name], lora=LoraConfig(rank=4, alpha=8, dropout=dropout))

    def train(seed: int) -> dict[str, torch.Tensor]:
        module = make(config, steps=3, seed=seed)
        run(module, rows_for(config, 16))
        return adapter(module)

    once, again, other = train(1), train(1), train(2)
    assert all(torch.equal(once[n], again[n]) for n in once)
    assert distance(other, once) > 0.1


def test_initialisation_does_not_depend_on_the_global_generator():
    torch.manual_seed(1)
    first = adapter(make(BRANCHES["sft"]))
    torch.manual_seed(2)
    torch.rand(100)
    state = torch.get_rng_state()
    second = adapter(make(BRANCHES["sft"]))
    assert all(torch.equal(first[n], second[n]) for n in first)
    assert torch.equal(torch.get_rng_state(), state)


def test_gradient_checkpointing_does_not_change_the_gradient():
    plain = gradient_of_a_step(BRANCHES["dpo"])
    assert distance(gradient_of_a_step(BRANCHES["dpo"], gradient_checkpointing=True), plain) < SAME


def test_nan_weights_stop_the_run_before_the_optimizer():
    module = make(BRANCHES["sft"], steps=3)
    with torch.no_grad():
        module.backbone.factors()[0][1].fill_(float("nan"))
    others = {n: p for n, p in adapter(module).items() if not p.isnan().any()}
    with pytest.raises(FloatingPointError, match="at step 0"):
        run(module, sft_rows(24))
    after = adapter(module)
    assert all(torch.equal(after[n], p) for n, p in others.items())
