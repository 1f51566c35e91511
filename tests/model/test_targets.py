"""Which layers get an adapter, against peft's own `all-linear`; fused and Conv1D layers train without names by hand."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from small_bases import small_base, small_model
from tiny import PAD, branch, make, run, sft_rows
from torch import nn
from transformers import AutoModelForCausalLM

from paft.command.compose import with_new_tasks
from paft.config import ALL_LINEAR, LINEAR_MODULES, LoraConfig, SFTConfig, Template, TrainerConfig
from paft.delta.statistics import read_adapter
from paft.graph.configs import BranchStage
from paft.merge.apply import apply_adapters
from paft.model.policy import Policy
from paft.model.targets import all_linear, resolved_targets
from paft.training.sft import SFTModule

EVERY = {
    "llama": LINEAR_MODULES,
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    "gpt_neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "opt": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
}


@pytest.mark.parametrize("kind", EVERY)
def test_all_linear_against_peft(kind: str) -> None:
    base = small_model(kind)
    ours, theirs = (
        {
            name
            for name, module in get_peft_model(
                small_model(kind), PeftLoraConfig(target_modules=targets, fan_in_fan_out=kind == "gpt2")
            ).named_modules()
            if hasattr(module, "lora_A")
        }
        for targets in (all_linear(base), "all-linear")
    )
    assert ours == theirs
    assert set(all_linear(base)) == set(EVERY[kind])


@pytest.mark.parametrize("kind", EVERY)
def test_the_default_is_all_linear_where_its_names_are_not(kind: str) -> None:
    base = small_model(kind)
    expected = LINEAR_MODULES if kind == "llama" else sorted(EVERY[kind])
    assert resolved_targets(base, LINEAR_MODULES) == expected
    assert resolved_targets(base, [ALL_LINEAR]) == sorted(EVERY[kind])


def test_a_name_that_is_no_linear_layer_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"\['q_prj'\] match no linear layer of llama; it has down_proj, .*all-linear"
    ):
        resolved_targets(small_model("llama"), ["q_prj", "k_proj"])


class Numbered(nn.Module):
    """Linear layers whose last names other modules have too."""

    class config:
        model_type = "numbered"

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleDict({"inner": nn.Linear(2, 2)}), nn.Linear(2, 2)])
        self.head = nn.Linear(2, 2)

    def get_output_embeddings(self) -> nn.Module:
        return self.head


def test_layers_without_a_name_of_their_own_are_named_in_full() -> None:
    base = Numbered()
    base.gate = nn.ModuleList([nn.Linear(2, 2)])
    assert all_linear(base) == ["1", "gate.0", "inner"]  # 0 is another module's name too


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "phi3"])
@pytest.mark.parametrize("rslora", [False, True])
def test_training_by_default_against_peft_on_the_saved_adapter(
    tmp_path: Path, kind: str, rslora: bool
) -> None:
    """What is trained is what peft loads, and what a merge applies: scaling and orientation are the trained ones."""
    model = small_base(tmp_path / "base", kind, tie_word_embeddings=False)
    base = Path(model.path)
    config = branch(SFTConfig, lora=LoraConfig(rank=4, alpha=6, rslora=rslora))
    stage = BranchStage(model, config, Template.chatml, 0)
    module = SFTModule(base, stage, TrainerConfig(), num_steps=4, pad_id=PAD)
    module.configure_model()
    run(module, sft_rows(32))
    trained = module.backbone.eval()
    trained.save(tmp_path / "adapter", {})
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        ours = trained.peft(ids).logits
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        untrained = plain(ids).logits
        theirs = PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).merge_and_unload()(ids).logits
        apply_adapters(base, {"sft": tmp_path / "adapter"}, tmp_path / "out")
        applied = (
            AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()(ids).logits
        )
    assert (ours - untrained).abs().max() > 1e-2
    # float32 sums in another order
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(applied, theirs, atol=1e-5, rtol=1e-5)
    (scaling,) = {delta.scaling for delta in read_adapter(tmp_path / "adapter", base).values()}
    assert scaling == (6 / 2 if rslora else 6 / 4)
    assert {factors.scaling for factors in trained.factors()} == {scaling}


def test_the_penalty_takes_the_true_scaling() -> None:
    from paft.config import L1Config
    from paft.losses import l1_penalty

    lora = LoraConfig(rank=4, alpha=6, rslora=True)
    module = make(branch(SFTConfig, lora=lora, l1=L1Config(1.0)))
    with torch.no_grad():
        for _, B, _ in module.backbone.factors():
            B.add_(1.0)
    expected = sum(float(d.dense().abs().double().sum()) for d in module.backbone.factors())
    assert float(module.penalty()) == pytest.approx(expected, rel=1e-4)
    assert float(l1_penalty(module.backbone.factors(), of="delta")) == pytest.approx(expected, rel=1e-4)


def test_the_word_of_peft_on_the_command_line(compose) -> None:
    words = ["experiment=smoke", "sft.lora.target_modules=all-linear", "preference.lora.rslora=true"]
    config = compose(*with_new_tasks(words))
    assert config.sft.lora.target_modules == [ALL_LINEAR]
    assert config.preference.lora.rslora
    with pytest.raises(ValueError, match="all-linear alone, or names of layers"):
        LoraConfig(target_modules=[ALL_LINEAR, "q_proj"])


def test_a_llama_trains_alike_by_its_names_and_by_the_word() -> None:
    policies = [
        Policy(small_model("llama"), LoraConfig(target_modules=targets))
        for targets in (LINEAR_MODULES, [ALL_LINEAR])
    ]
    assert policies[0].adapted_weights() == policies[1].adapted_weights()
