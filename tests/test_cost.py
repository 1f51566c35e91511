"""FLOPs, parameters and bytes from shapes alone, against what torch counts on real small models."""

from dataclasses import replace

import pytest
import torch
from tiny import MODEL, judged, pairs, sft_rows
from torch.utils.flop_counter import FlopCounterMode

from paft.config import HubModel, L1Config, LocalModel, LoraConfig, SFTConfig
from paft.cost.flops_and_bytes import (
    Batch,
    branch_flops,
    dropout_masks,
    forward_flops,
    layer_activations,
    lora_parameters,
    parameters,
    penalty_flops,
    training_flops,
    training_memory,
)
from paft.cost.shape import read_shape, shape_of
from paft.cost.work import Work, other_forwards, pair_work, rows_work, sequence_work
from paft.losses import l1_penalty
from paft.model.base import base_folder
from paft.model.policy import Policy
from paft.objectives import DPO, KTO, ORPO, KTOLoss, NLLScope
from paft.proof.base import load_base

DEEP = replace(MODEL, num_layers=8)
LORA = LoraConfig(rank=4)
B, T, LABELS = 3, 40, 10


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy(load_base(base_folder(DEEP), DEEP), LORA).train()


@pytest.fixture(scope="module")
def shape():
    return read_shape(base_folder(DEEP) / "config.json")


def counting() -> FlopCounterMode:
    """torch's counter, taught the product that adds into its output."""

    def product(_, a, b, **__) -> int:
        return 2 * a[0] * a[1] * b[1]

    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: product})


def step(policy: Policy) -> torch.Tensor:
    """Log-probabilities of `LABELS` answer tokens in each of `B` rows of `T` tokens."""
    ids = torch.randint(3, 200, (B, T), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, : T - LABELS] = -100
    return policy(ids, labels, torch.full((B,), T))


# --- parameters and FLOPs against torch ---------------------------------------------------------------


def test_parameters_against_the_module(policy, shape):
    trainable = sum(p.numel() for p in policy.parameters() if p.requires_grad)

    assert lora_parameters(shape, LORA) == trainable
    assert parameters(shape) == sum(p.numel() for p in policy.parameters()) - trainable


def test_forward_flops_against_torch(policy, shape):
    with counting() as counter, policy.reference():
        step(policy)

    # torch's dense products count every (query, key) pair, also those that causality hides
    work = Work(B * T, B * T * T, B * LABELS)
    assert forward_flops(shape, work) == pytest.approx(counter.get_total_flops(), rel=1e-3)


def test_training_flops_against_torch(policy, shape):
    with counting() as counter:
        step(policy).sum().backward()

    # the first of eight layers needs no gradient to its input, so torch counts a little less
    expected = training_flops(shape, Work(B * T, B * T * T, B * LABELS), LORA)
    assert 0.97 * expected < counter.get_total_flops() <= expected


def test_penalty_flops_against_torch(policy, shape):
    with counting() as counter:
        l1_penalty(policy.factors()).backward()

    assert penalty_flops(shape, LORA) == pytest.approx(counter.get_total_flops(), rel=1e-6)


def test_recomputation_adds_a_forward_pass_of_the_layers(shape):
    work = Work(B * T, B * T * T, 0)

    added = training_flops(shape, work, LORA, recompute=True) - training_flops(shape, work, LORA)

    assert added == forward_flops(shape, work) + 2 * lora_parameters(shape, LORA) * work.tokens


def test_penalty_and_reference_add_to_a_branch(shape):
    work, how = sequence_work(T, LABELS) * B, {"steps": 5, "recompute": False}
    plain = branch_flops(shape, SFTConfig(), work, forwards=0, **how)
    sparse = SFTConfig(l1=L1Config(1e-4))

    with_penalty = branch_flops(shape, sparse, work, forwards=0, **how)
    with_reference = branch_flops(shape, SFTConfig(), work, forwards=1, **how)

    assert with_penalty - plain == 5 * penalty_flops(shape, sparse.lora)
    assert with_reference - plain == forward_flops(shape, work)


# --- work ---------------------------------------------------------------------------------------------


def test_rows_count_real_tokens_and_labels():
    rows = sft_rows(6)

    work = rows_work(rows, SFTConfig())

    assert work.tokens == sum(len(r.input_ids) for r in rows)
    assert work.attended == sum(len(r.input_ids) ** 2 for r in rows) / 2
    assert work.labels == sum(r.num_labels for r in rows)


def test_judged_answers_count_as_rows_of_their_own():
    rows = judged(6)

    work = rows_work(rows, KTO())

    assert work == rows_work([row.text for row in rows], SFTConfig())


def test_pairs_count_their_prompt_once():
    rows = pairs(5)

    work = rows_work(rows, DPO())

    assert work.tokens == sum(r.row_tokens for r in rows)
    assert work.labels == sum(r.num_labels for r in rows)


@pytest.mark.parametrize(("scope", "added"), [(NLLScope.sequence, 9), (NLLScope.response, 0)])
def test_orpo_learns_its_prompt_where_it_says_so(scope, added):
    ((prompt, _, _),) = pairs(1)
    rows = pairs(1)

    more = rows_work(rows, ORPO(nll_scope=scope)).labels - rows_work(rows, DPO()).labels

    assert more == (len(prompt) - 1 if added else 0)


def test_answers_attend_to_their_prompt():
    assert pair_work(10, 4, 6).attended == 14 * 14 / 2 + 7 * (10 + 7 / 2)


@pytest.mark.parametrize(
    ("branch", "inputs", "expected"),
    [
        (DPO(), {"data"}, 1),
        (DPO(), {"data", "reference"}, 0),
        (ORPO(), {"data"}, 0),
        (KTO(), {"data"}, 3),  # the mismatched answers in the policy, both answers in the reference
        (KTO(), {"data", "reference"}, 1),
        (KTO(loss=KTOLoss.apo_zero_unpaired), {"data"}, 1),
        (KTO(loss=KTOLoss.apo_zero_unpaired), {"data", "reference"}, 0),
    ],
)
def test_a_step_forwards_its_rows_for_the_base_and_for_the_reference_point(branch, inputs, expected):
    assert other_forwards(branch, inputs) == expected


# --- shapes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "published"),
    [("mistral_7b", 7_241_732_096), ("llama3_8b", 8_030_261_248), ("smollm2_135m", 134_515_008)],
)
def test_shipped_shapes_have_the_published_number_of_parameters(compose, choice, published):
    assert parameters(compose(f"model={choice}").model.shape) == published


@pytest.mark.parametrize("choice", ["tiny", pytest.param("smollm2_135m", marks=pytest.mark.slow)])
def test_shipped_shapes_against_config_json(compose, choice):
    model = compose(f"model={choice}").model

    assert model.shape == read_shape(base_folder(model) / "config.json")


def test_shape_is_no_part_of_a_key(compose):
    from paft.graph.stage import canonical

    model = compose("model=mistral_7b").model

    assert canonical(model) == canonical(replace(model, shape=None))


def test_shape_of_a_hub_model_is_read_from_its_cache(tmp_path, monkeypatch, shape):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = HubModel(name="m", repo="org/some", revision="0" * 40)
    folder = tmp_path / "models--org--some" / "snapshots" / ("0" * 40)
    assert shape_of(model) is None

    folder.mkdir(parents=True)
    (folder / "config.json").write_text((base_folder(DEEP) / "config.json").read_text())

    assert shape_of(model) == shape


@pytest.mark.parametrize("text", ["", "[]", '{"hidden_size": 8}', '{"num_local_experts": 8}'])
def test_another_kind_of_model_has_no_shape(tmp_path, text):
    (tmp_path / "config.json").write_text(text)

    assert read_shape(tmp_path / "config.json") is None
    assert shape_of(LocalModel(name="m", path=str(tmp_path))) is None


# --- memory -------------------------------------------------------------------------------------------


def saved(policy: Policy) -> int:
    """Bytes that a forward pass keeps for its backward pass."""
    held: dict[int, int] = {}
    frozen = {p.untyped_storage().data_ptr() for p in policy.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in frozen:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        kept_alive = step(policy)
    assert kept_alive.requires_grad
    return sum(held.values())


def test_activations_against_saved_tensors(policy, shape):
    formula = 8 * layer_activations(shape, Batch(B * T, T), item_bytes=4, stored_scores=True)
    # besides: the factors' products (rank 4 of 32 here, 16 of 576 in a real model), norms' scales, labels
    assert formula < saved(policy) < 1.25 * formula


def test_dropout_keeps_a_mask_of_every_adapted_input(policy, shape):
    lora = replace(LORA, dropout=0.1)
    dropping = Policy(load_base(base_folder(DEEP), DEEP), lora).train()
    masks = 8 * B * T * dropout_masks(shape, lora)
    how = {"item_bytes": 4, "stored_scores": True}
    planned = [training_memory(shape, each, Batch(B * T, T), **how)["activations"] for each in (LORA, lora)]

    assert dropout_masks(shape, LORA) == 0 < masks == planned[1] - planned[0]
    assert masks <= saved(dropping) - saved(policy)


def test_shards_divide_base_and_adapter_but_not_activations(shape):
    how = {"item_bytes": 2, "recompute": False}
    alone = training_memory(shape, LORA, Batch(B * T, T), **how)
    shared = training_memory(shape, LORA, Batch(B * T, T), shards=4, **how)

    # gradients, unlike values and moments, stay whole until the last micro-batch
    assert shared["adapter"] == alone["adapter"] / 4 + 4 * lora_parameters(shape, LORA)
    assert shared["activations"] == alone["activations"]
    whole_units = shared["base"] - alone["base"] / 4
    assert 0 < whole_units < alone["base"]


def test_recomputation_keeps_one_layer(shape):
    how = {"item_bytes": 2}
    kept = training_memory(shape, LORA, Batch(B * T, T), recompute=False, **how)["activations"]
    recomputed = training_memory(shape, LORA, Batch(B * T, T), recompute=True, **how)["activations"]

    assert kept / 8 < recomputed < kept / 3
