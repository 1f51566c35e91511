"""Dropout comes from `lora.dropout` alone, and its masks from (seed, step, row, layer) alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_bases import small_base
from tiny import MODEL, branch, distance, gradient_of_a_step, gradients, make, move, pairs, rows_for, run

from paft.config import LoraConfig, SFTConfig, Template, TrainerConfig
from paft.forward.pairs import shared_prompt_tensors, two_row_tensors
from paft.graph.configs import BranchStage
from paft.model.layers.dropout import RowDropout, Rows
from paft.model.policy import Policy
from paft.objectives import DPO, ORPO
from paft.proof.base import load_base
from paft.training.batches import StepLoader
from paft.training.preference import PreferenceModule

LORA = LoraConfig(rank=4, alpha=8, dropout=0.1)
SAME = 5e-6
"""Relative distance of float32 gradients summed in another order; other masks are some percent apart."""
KINDS = [SFTConfig, DPO, ORPO]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "settings", [{"micro_batch_size": 2}, {"micro_batch_tokens": 60}, {"gradient_checkpointing": True}]
)
def test_the_update_does_not_depend_on_how_a_batch_is_run(kind: type[Any], settings: dict[str, Any]) -> None:
    whole = gradient_of_a_step(branch(kind, lora=LORA))
    assert distance(gradient_of_a_step(branch(kind, lora=LORA), **settings), whole) < SAME
    assert distance(gradient_of_a_step(branch(kind)), whole) > 0.02  # and there is dropout


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_draw_what_one_device_draws(kind: type[Any]) -> None:
    """Two shares of a global batch, one after the other: their gradients add up to that of the whole."""
    config = branch(kind, lora=LORA)
    whole, parts = gradient_of_a_step(config), []
    for rank in range(2):
        module = move(make(config, steps=2))
        loader = StepLoader(
            rows_for(config, 8), global_batch_size=8, steps=2, seed=module.seed, rank=rank, world=2
        )
        loader.load_state_dict({"start": 1})
        (batch,) = loader
        module.backbone.rows.begin(1, batch.places, [row.row_tokens for row in batch.rows])
        loss, _ = module.micro_loss(list(batch.rows), batch)
        loss.backward()
        parts.append(gradients(module))
    added = {name: parts[0][name] + parts[1][name] for name in whole}
    assert distance(added, whole) < SAME


def test_masks_differ_between_steps_rows_layers_and_seeds_and_keep_the_mean() -> None:
    x = torch.ones(2, 500, 64)

    def mask(layer: str = "a", step: int = 0, seed: int = 0) -> torch.Tensor:
        rows = Rows(seed)
        rows.begin(step, [0, 1], [500, 500])
        rows.lay_out(torch.arange(500).expand(2, 500))
        return RowDropout(0.1, layer, rows)(x)

    one = mask()
    assert torch.equal(one, mask()) and not torch.equal(one[0], one[1])
    for other in (mask("b"), mask(step=1), mask(seed=1)):
        assert (other != one).float().mean() > 0.1
    # 64,000 draws: a standard error of 0.0012
    assert (one == 0).float().mean().item() == pytest.approx(0.1, abs=0.006)
    assert one.max().item() == pytest.approx(1 / 0.9)


def test_a_pair_has_the_same_masks_in_one_row_and_in_two() -> None:
    module = move(make(branch(DPO, lora=LORA)))
    rows, sums = pairs(4), []
    for lay_out in (shared_prompt_tensors, two_row_tensors):
        module.backbone.rows.begin(3, range(4), [row.row_tokens for row in rows])
        tensors = lay_out(rows, 0)
        sums.append(torch.stack(tensors.answer_sums(tensors.logps(module.backbone))))
    torch.testing.assert_close(sums[0], sums[1], atol=1e-4, rtol=1e-5)


def test_dropout_is_refused_on_layers_that_see_other_rows() -> None:
    rows = Rows(0)
    rows.begin(0, [0], [5])
    rows.lay_out(torch.arange(5)[None])
    with pytest.raises(ValueError, match=r"lora.dropout=0.1 cannot be used on experts.0, .* lora.dropout=0"):
        RowDropout(0.1, "experts.0", rows)(torch.ones(3, 8))


DROPPING = [
    ("opt", {"dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.5}),
    ("llama", {"attention_dropout": 0.5}),
    ("gpt2", {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}),
    ("phi", {"resid_pdrop": 0.5, "embd_pdrop": 0.5}),
    ("bloom", {"hidden_dropout": 0.5, "attention_dropout": 0.5}),
]
TARGETS = {"gpt2": ["lm_head"], "bloom": ["dense"]}
UNTIED = {"gpt2": {"tie_word_embeddings": False}}


@pytest.mark.parametrize(("kind", "settings"), DROPPING)
@pytest.mark.parametrize("recompute", [False, True])
def test_the_bases_own_dropout_is_off(
    kind: str, settings: dict[str, Any], recompute: bool, tmp_path: Path
) -> None:
    """The first loss of a DPO training is log 2 exactly where policy and reference are the same."""
    config = small_base(tmp_path, kind, **settings, **UNTIED.get(kind, {}))
    lora = LoraConfig(rank=2, alpha=2, target_modules=TARGETS.get(kind, ["q_proj"]))
    module = PreferenceModule(
        tmp_path,
        BranchStage(config, branch(DPO, lora=lora, reference="online"), Template.chatml, 0),
        TrainerConfig(gradient_checkpointing=recompute),
        num_steps=1,
    )
    module.configure_model()
    (logs,) = run(module, pairs(8))
    assert logs["train/loss"] == pytest.approx(0.693147, abs=1e-5)


def test_only_what_the_adapter_adds_is_in_training_mode() -> None:
    policy = Policy(load_base(make(branch(SFTConfig)).base_folder, MODEL), LORA).train()
    training = {type(m) for m in policy.modules() if m.training}
    assert RowDropout in training and not any(
        m.training for m in policy.base.modules() if type(m) is torch.nn.Dropout
    )
    assert not any(m.training for m in policy.eval().modules())


def test_an_adapter_that_the_model_never_calls_is_refused(tmp_path: Path) -> None:
    """RWKV-like shortcuts read a layer's weight themselves; here the layer's forward is left out."""
    module = make(branch(SFTConfig, lora=LoraConfig(rank=2, alpha=2, target_modules=["q_proj", "o_proj"])))
    for layer in module.backbone.base.model.layers:
        layer.self_attn.o_proj.forward = lambda x: x
    with pytest.raises(
        ValueError, match=r"lora.target_modules \['o_proj'\] get no gradient: llama never calls"
    ):
        run(module, rows_for(module.config, 8))
