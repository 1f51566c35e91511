"""QLoRA: the base in four bits while an adapter trains, and nowhere else."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from resumable import configured, stage_of
from safetensors.torch import load_file
from tiny import BFLOAT16, BRANCHES, MODEL, SAME, distance, gradients, make, move, rows_for, whole_batch
from torch import Tensor, nn

from paft.command.pipeline import run_cell
from paft.config import HardwareConfig, Quantization, SFTConfig
from paft.cost.flops_and_bytes import base_memory, item_bytes, weight_bytes
from paft.cost.shape import read_shape
from paft.delta.statistics import read_adapter
from paft.graph.build import build
from paft.graph.stage import canonical
from paft.model.adapters import add_deltas, base_fingerprint
from paft.model.base import base_folder
from paft.proof.base import load_base
from paft.store.store import Store
from paft.training.module import BranchModule

bitsandbytes = pytest.importorskip("bitsandbytes", reason="pip install 'paft[qlora]'")

NF4 = replace(MODEL, quantization=Quantization.nf4)
QLORA = ("model.quantization=nf4", "sft.max_steps=2", "preference.max_steps=2", "paradigm=sft", "logger=csv")


def packed_layers(module: BranchModule) -> dict[str, nn.Module]:
    kind = bitsandbytes.nn.Linear4bit
    return {
        name.replace(".base_layer", ""): m
        for name, m in module.backbone.base.named_modules()
        if isinstance(m, kind)
    }


def unpacked(layer: nn.Module) -> Tensor:
    weight = layer.weight
    values: Tensor = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
    return values


def gradient(module: BranchModule) -> dict[str, Tensor]:
    """Of one micro-batch and the penalty."""
    rows = rows_for(module.config, 4)
    loss, _ = module.micro_loss(list(rows), whole_batch(rows, step=1))
    penalty = module.penalty()
    (loss if penalty is None else loss + penalty).backward()
    return gradients(module)


# --- training -----------------------------------------------------------------------------------------


def test_every_linear_layer_but_the_head_is_packed():
    module = make(BRANCHES["sft"], model=NF4)

    linear = {n for n, m in load_base(base_folder(MODEL), MODEL).named_modules() if isinstance(m, nn.Linear)}
    assert packed_layers(module).keys() == linear - {"lm_head"}
    assert all(m.weight.quant_state.nested for m in packed_layers(module).values())  # double quantization
    assert all(p.dtype is torch.float32 for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("name", ["sft+l1", "sft+l1 factors", "dpo", "orpo"])
def test_gradient_against_a_plain_base_with_the_rounded_weights(name, dropout):
    config = replace(BRANCHES[name], lora=replace(BRANCHES[name].lora, dropout=dropout))
    quantized = move(make(config, model=NF4))
    plain = move(make(config))
    for path, layer in packed_layers(quantized).items():
        wrapped = plain.backbone.base.get_submodule(path)
        wrapped.base_layer.weight.data.copy_(unpacked(layer))

    assert distance(gradient(quantized), gradient(plain)) < SAME


def test_an_adapter_over_four_bits_works_in_the_type_of_the_base():
    module = move(make(BRANCHES["sft"], model=replace(BFLOAT16, quantization=Quantization.nf4)))
    q_proj = module.backbone.base.model.layers[0].self_attn.q_proj
    x = torch.randn(1, 3, q_proj.in_features, dtype=torch.bfloat16)
    kept: list[Tensor] = []

    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        q_proj(x)

    assert {t.dtype for t in kept} == {torch.bfloat16}


def test_rounding_moves_the_gradient():
    """What the test above could not see if both bases were the same."""
    quantized, plain = (move(make(BRANCHES["sft"], model=model)) for model in (NF4, MODEL))

    assert 0.01 < distance(gradient(quantized), gradient(plain)) < 0.5


def test_validation_leaves_the_packed_weights_trainable():
    module = move(make(BRANCHES["sft"], model=replace(BFLOAT16, quantization=Quantization.nf4)))
    before = gradient(module)
    module.zero_grad()

    module.eval()
    with torch.no_grad():
        module.micro_loss(list(rows_for(module.config, 4)), whole_batch(rows_for(module.config, 4)))
    module.train()

    after = gradient(module)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_reference_policy_is_the_packed_base():
    module = make(BRANCHES["dpo"], model=NF4)
    rows = rows_for(module.config, 4)

    loss, values = module.micro_loss(
        list(rows), whole_batch(rows)
    )  # step 0: refuses a reference that differs

    assert torch.isfinite(loss) and values["margins"] == 0


def test_a_sequential_delta_is_added_before_rounding(tmp_path):
    first = move(make(BRANCHES["sft"]))
    first.backbone.save(tmp_path / "adapter", {})

    module = make(BRANCHES["dpo"], model=NF4, deltas=(tmp_path / "adapter",))

    moved = load_base(base_folder(MODEL), MODEL)
    add_deltas(moved, [tmp_path / "adapter"], base_folder(MODEL))
    for path, layer in packed_layers(module).items():
        packed, state = bitsandbytes.functional.quantize_4bit(
            moved.get_submodule(path).weight.data, quant_type="nf4", compress_statistics=True
        )
        assert torch.equal(layer.weight.data, packed)
        assert torch.equal(layer.weight.quant_state.absmax, state.absmax)


def test_memory_of_the_plan_against_the_model():
    wide = replace(BFLOAT16, hidden_size=256, quantization=Quantization.nf4)
    module = make(BRANCHES["sft"], model=wide)
    layers = packed_layers(module).values()
    frozen = sum(p.nbytes for p in module.parameters() if not p.requires_grad)
    states = [layer.weight.quant_state for layer in layers]
    maxima = sum(s.absmax.nbytes + s.state2.absmax.nbytes for s in states)

    shape = read_shape(base_folder(wide) / "config.json")
    held = HardwareConfig()  # of bfloat16 products: see the fixture of all tests
    planned = base_memory(shape, item_bytes=item_bytes(wide, held), weight_bytes=weight_bytes(wide, held))

    assert planned == pytest.approx(frozen + maxima, rel=1e-3)


# --- what it is part of -------------------------------------------------------------------------------


def test_only_what_trains_or_scores_for_training_knows_of_it(compose):
    plain, quantized = (build(compose("experiment=smoke", *how)) for how in ((), ("model.quantization=nf4",)))

    for stage, other in zip(plain.walk(), quantized.walk(), strict=True):
        trains = stage.name in ("sft", "preference", "reference")
        assert (canonical(stage.config) != canonical(other.config)) is trains
        assert "quantization" not in json.dumps(canonical(stage.config))


def test_an_adapter_is_for_the_base_as_it_was_released():
    assert base_fingerprint(NF4) == base_fingerprint(MODEL)
    assert base_folder(NF4) == base_folder(MODEL)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Logs of a store in which a QLoRA branch is finished, and nothing after it."""
    logs = tmp_path_factory.mktemp("logs")
    config = configured(logs, *QLORA)
    cell = build(config)
    merge = cell.inputs["model"]
    stage_of(config, "merge")
    assert not Store(config.store).complete(merge)
    return logs


def test_merge_and_evaluation_run_without_the_package(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as where it is not installed
    config = configured(trained, *QLORA)
    cell, store = build(config), Store(config.store)

    run_cell(config, cell)

    merge = cell.inputs["model"]
    sft = store.path(merge.inputs["sft"]) / "adapter"
    base, merged = (
        load_file(f / "model.safetensors") for f in (base_folder(config.model), store.path(merge))
    )
    deltas = read_adapter(sft)
    assert json.loads((sft / "paft.json").read_text())["base"] == base_fingerprint(config.model.as_released())
    for name, weight in base.items():
        delta = deltas[name].dense() if name in deltas else torch.zeros_like(weight)
        torch.testing.assert_close(merged[name], weight + delta, rtol=0, atol=1e-7)


def test_without_the_package_nothing_starts(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    config = configured(tmp_path / "logs", *QLORA)

    with pytest.raises(ValueError, match=r"needs the package bitsandbytes.*pip install 'paft\[qlora\]'"):
        run_cell(config, build(config))

    assert not list((tmp_path / "logs").rglob("*.partial")) and not list(
        (tmp_path / "logs").rglob("stage.json")
    )


def test_zephyr_s_recipe(compose):
    config = compose("experiment=zephyr_mistral_7b_qlora")
    plain = compose("experiment=zephyr_mistral_7b")

    assert config.model == replace(plain.model, quantization=Quantization.nf4)
    assert (config.sft, config.preference, config.data) == (plain.sft, plain.preference, plain.data)
    assert (config.trainer.devices, config.trainer.micro_batch_tokens) == (1, 8192)
    assert isinstance(config.sft, SFTConfig) and config.sft.global_batch_size == 8
