"""The saved adapter is a standard PEFT folder: peft loads it, its deltas are peft's, nothing is pickled."""

import json

import pytest
import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file
from small_bases import small_model
from tiny import BFLOAT16, MODEL, branch, make, move, run, sft_rows

from paft.config import DType, LocalModel, LoraConfig, SFTConfig, Template, TinyModel, TrainerConfig
from paft.delta.statistics import read_adapter
from paft.forward.batches import sft_tensors
from paft.graph.configs import BranchStage
from paft.logps import label_logps
from paft.model.adapters import base_fingerprint, load_adapter
from paft.model.base import base_folder, byte_tokenizer
from paft.model.policy import ADAPTER, Policy
from paft.proof.base import load_base
from paft.training.sft import SFTModule

IDS = torch.arange(3, 40)[None]


@pytest.fixture(scope="module")
def trained():
    module = make(branch(SFTConfig, lora=LoraConfig(rank=4, alpha=6, dropout=0.1)), steps=4)
    run(module, sft_rows(32))
    return module.backbone.eval()


@pytest.fixture(scope="module")
def saved(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    trained.save(folder, {"base": "tiny-1", "tokenizer": "t", "template": "c"})
    return folder


def test_peft_loads_it_and_gives_the_trained_logits(trained, saved):
    loaded = PeftModel.from_pretrained(load_base(base_folder(MODEL), MODEL), str(saved)).eval()
    ours, base = trained.peft(IDS).logits, load_base(base_folder(MODEL), MODEL)(IDS).logits
    # float32 sums in another order: ours is one fused node per layer
    torch.testing.assert_close(loaded(IDS).logits, ours, atol=1e-6, rtol=1e-5)
    assert (ours - base).abs().max() > 1e-3
    again = load_adapter(load_base(base_folder(MODEL), MODEL), saved)(IDS).logits
    assert torch.equal(again, loaded(IDS).logits)


def test_deltas_are_those_of_peft(trained, saved):
    deltas = read_adapter(saved)
    layers = {n: m for n, m in trained.peft.named_modules() if hasattr(m, "get_delta_weight")}
    assert len(deltas) == len(layers) == 14
    for name, layer in layers.items():
        found = deltas[name.removeprefix("base_model.model.") + ".weight"].dense()
        torch.testing.assert_close(found, layer.get_delta_weight(ADAPTER))
    assert deltas["model.layers.0.mlp.up_proj.weight"].scaling == 6 / 4


def test_folder_holds_a_standard_adapter_and_no_pickle(saved):
    assert sorted(p.name for p in saved.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "paft.json"
    ]  # fmt: skip
    config = PeftConfig.from_pretrained(str(saved))
    assert (config.r, config.lora_alpha, config.lora_dropout, config.task_type) == (4, 6, 0.1, "CAUSAL_LM")
    assert {t.dtype for t in load_file(saved / "adapter_model.safetensors").values()} == {torch.float32}
    assert json.loads((saved / "paft.json").read_text())["base"] == "tiny-1"


def test_forward_is_the_log_probability_of_peft_logits(trained):
    ids, labels, lengths = sft_tensors(sft_rows(6), 0)
    expected = label_logps(trained.peft(input_ids=ids, attention_mask=(ids != 0).long()).logits, labels)
    torch.testing.assert_close(trained(ids, labels, lengths), expected)


def test_padding_does_not_reach_a_row(trained):
    rows = sft_rows(6)
    together = trained(*sft_tensors(rows, 0))
    for row, logps in zip(rows, together, strict=True):
        (alone,) = trained(*sft_tensors([row], 0))
        torch.testing.assert_close(alone, logps[: len(alone)])
        assert not logps[len(alone) :].any()


def test_a_row_in_a_pack_sends_no_gradient_to_another(trained):
    rows = sft_rows(3)
    embedded = []
    hook = trained.base.get_input_embeddings().register_forward_hook(
        lambda *call: embedded.append(call[-1].requires_grad_()) or embedded[-1]
    )
    logps = trained(*sft_tensors(rows, 0))
    hook.remove()
    (gradient,) = torch.autograd.grad(logps[1].sum(), embedded)
    parts = gradient.norm(dim=-1)[0].split([len(row.input_ids) for row in rows])
    assert [bool(part.any()) for part in parts] == [False, True, False]


@pytest.mark.parametrize("setting", ["_attn_implementation", "sliding_window"])
def test_rows_are_padded_where_they_cannot_be_packed(trained, setting):
    tensors, config = sft_tensors(sft_rows(4), 0), trained.base.config
    packed = trained(*tensors)
    values = {"_attn_implementation": "sdpa", "sliding_window": 3}
    before = getattr(config, setting, None)
    shapes = []
    hook = trained.base.get_input_embeddings().register_forward_hook(
        lambda module, ids, out: shapes.append(ids[0].shape)
    )
    setattr(config, setting, values[setting])
    padded = trained(*tensors)
    setattr(config, setting, before)
    hook.remove()
    assert shapes == [tensors[0].shape]
    torch.testing.assert_close(padded, packed)


def test_unknown_target_module_names_what_exists():
    base = load_base(base_folder(MODEL), MODEL)
    with pytest.raises(
        ValueError, match=r"\['q_prj'\] match no linear layer of llama; it has .*q_proj"
    ) as error:
        Policy(base, LoraConfig(target_modules=["q_prj", "v_proj"]))
    assert "up_proj" in str(error.value)


def test_fewer_targets_give_fewer_factors():
    policy = Policy(
        load_base(base_folder(MODEL), MODEL), LoraConfig(rank=2, target_modules=["q_proj", "down_proj"])
    )
    assert [(A.shape[0], B.shape[1]) for A, B, _ in policy.factors()] == [(2, 2)] * 4


def test_factors_are_float32_on_a_bfloat16_base_and_the_delta_starts_at_zero():
    module = make(branch(SFTConfig), model=BFLOAT16)
    for A, B, _ in module.backbone.factors():
        assert A.dtype == B.dtype == torch.float32 and A.any() and not B.any()


def test_saved_adapter_with_moved_factors_is_what_read_adapter_returns(tmp_path):
    module = move(make(branch(SFTConfig)))
    module.backbone.save(tmp_path, {})
    found = [(low.A, low.B) for low in read_adapter(tmp_path).values()]
    for A, B, _ in module.backbone.factors():
        assert any(torch.equal(A, a) and torch.equal(B, b) for a, b in found)


def test_base_fingerprint_tells_models_apart():
    assert base_fingerprint(MODEL) == base_fingerprint(TinyModel(**MODEL.__dict__))
    assert base_fingerprint(MODEL) != base_fingerprint(TinyModel(**(MODEL.__dict__ | {"seed": 1})))


def test_an_adapter_on_a_tensor_that_is_in_no_file_is_refused_before_training(tmp_path):
    """It could never be merged: of a tied head."""
    module = on_tied_base(tmp_path, "lm_head", lambda model: model)
    with pytest.raises(ValueError, match=r"lm_head.weight is not among the tensors of"):
        module.configure_model()


def test_a_tied_base_that_was_saved_without_the_prefix_of_its_model_is_trained(tmp_path):
    """As GPT-2 on the hub: the names in its file are not those in the model, and the adapter can be merged."""
    module = on_tied_base(tmp_path, "q_proj", lambda model: model.model)
    module.configure_model()
    module.backbone.save(tmp_path / "adapter", {})
    assert set(read_adapter(tmp_path / "adapter", tmp_path)) == {
        name.removeprefix("model.") for name in module.backbone.adapted_weights()
    }


def on_tied_base(folder, target, part):
    """The module of an adapter on `target` of a tied base, of which `part` is saved."""
    part(small_model("llama", tie_word_embeddings=True)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    config = LocalModel(name="mine", path=str(folder), dtype=DType.float32)
    lora = LoraConfig(rank=2, alpha=2, target_modules=[target])
    stage = BranchStage(config, branch(SFTConfig, lora=lora), Template.chatml, 0)
    return SFTModule(folder, stage, TrainerConfig(), num_steps=1)
