"""Reading PEFT adapters, and the numbers that describe a delta."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from paft.delta.statistics import LowRank, adapter_statistics, layer_statistics, read_adapter


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=2, **sizes))


def save_adapter(folder: Path, seed: int = 0, **options: Any) -> PeftModel:
    """A PEFT adapter with random factors on a tiny Llama."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]} | options
    model = get_peft_model(tiny_llama(), LoraConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    model.save_pretrained(str(folder))
    return model


def random_low_rank(out: int = 40, rank: int = 6, width: int = 30, seed: int = 0) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    return LowRank(
        torch.randn(rank, width, generator=generator), torch.randn(out, rank, generator=generator), 0.01
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {
            "rank_pattern": {"down_proj": 7},
            "alpha_pattern": {"down_proj": 3, "layers.1.self_attn.q_proj": 20},
        },
    ],
)
def test_read_adapter_against_peft(tmp_path: Path, options: dict[str, Any]) -> None:
    model = save_adapter(tmp_path, **options)
    adapter = read_adapter(tmp_path)
    modules = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    assert adapter.keys() == {f"{name}.weight" for name in modules}
    assert adapter.keys() <= tiny_llama().state_dict().keys()
    for name, module in modules.items():
        torch.testing.assert_close(
            adapter[f"{name}.weight"].dense(), module.get_delta_weight("default").detach()
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "lora_magnitude_vector"),
        ({"modules_to_save": ["lm_head"]}, "lm_head.weight"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora'"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication="),
    ],
)
def test_what_is_no_delta_without_the_base_is_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    save_adapter(tmp_path, **options)
    with pytest.raises(ValueError, match=message) as error:
        read_adapter(tmp_path)
    assert str(tmp_path) in str(error.value)


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, part: str, change: Any) -> None:
    """Replace the first tensor whose name holds `part`; None removes it."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if part in name)
    changed = change(tensors.pop(name))
    save_file(tensors if changed is None else tensors | {name: changed}, path)


def rename_to_pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "adapter_config.json").unlink(), "no adapter_config.json"),
        (rename_to_pickle, "is a pickle and is not read"),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b"nonsense"), "cannot be read"),
        (lambda f: edit_config(f, peft_type="LOHA"), "peft_type='LOHA'"),
        (lambda f: edit_config(f, r=5), r"lora_A \[4, "),
        (lambda f: edit_weights(f, "lora_B", lambda _: None), "more or less than pairs"),
        (lambda f: edit_weights(f, "lora_A", lambda _: None), "more or less than pairs"),
        (lambda f: edit_weights(f, "lora_B", lambda B: B[:, :2].clone()), "of rank 4"),
        (lambda f: edit_weights(f, "lora_A", lambda A: A * math.nan), "NaN or infinite"),
    ],
)
def test_damaged_adapters_are_refused(tmp_path: Path, damage: Any, message: str) -> None:
    save_adapter(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        read_adapter(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_statistics_of_a_delta_computed_by_hand() -> None:
    statistics = layer_statistics(torch.tensor([[0.0, 3.0], [-4.0, 5e-6]]))
    assert statistics["numel"] == 4
    assert statistics["share_below_1e-5"] == 0.5
    assert statistics["share_zero"] == 0.25
    assert statistics["share_below_tenth_rms"] == 0.5
    assert statistics["l1"] == pytest.approx(7.000005)
    assert statistics["l2"] == pytest.approx(5.0)
    assert statistics["rms"] == pytest.approx(2.5)
    assert statistics["hoyer"] == pytest.approx(2 - 7.000005 / 5)
    assert statistics["gini"] == pytest.approx(2 * (3 * 3 + 4 * 4) / (4 * 7) - 5 / 4, rel=1e-5)


def test_sparsity_measures_at_their_ends() -> None:
    one_hot, flat = torch.zeros(10, 10), torch.full((10, 10), 0.25)
    one_hot[3, 4] = 2.0
    assert layer_statistics(one_hot)["hoyer"] == pytest.approx(1.0)
    assert layer_statistics(one_hot)["gini"] == pytest.approx(0.99)
    assert layer_statistics(flat)["hoyer"] == pytest.approx(0.0)
    assert layer_statistics(flat)["gini"] == pytest.approx(0.0)
    zero = layer_statistics(torch.zeros(10, 10))
    assert [zero[key] for key in ("hoyer", "gini", "share_below_tenth_rms", "l2", "effective_rank")] == [
        1,
        1,
        1,
        0,
        0,
    ]


def test_scale_free_measures_do_not_see_the_scale() -> None:
    small, large = random_low_rank(), random_low_rank()
    large = LowRank(large.A, large.B, 100 * large.scaling)
    for key in ("hoyer", "gini", "share_below_tenth_rms", "effective_rank"):
        assert layer_statistics(large)[key] == pytest.approx(layer_statistics(small)[key], rel=1e-5)


def test_effective_rank_from_factors_against_the_dense_svd() -> None:
    delta = random_low_rank()
    from_factors = layer_statistics(delta)["effective_rank"]
    assert from_factors == pytest.approx(layer_statistics(delta.dense())["effective_rank"], rel=1e-4)
    assert 5 < from_factors <= 6
    eye = LowRank(torch.eye(6, 30), torch.eye(40, 6), 0.5)
    assert layer_statistics(eye)["effective_rank"] == pytest.approx(6)


def test_gini_of_a_sample_is_near_the_whole() -> None:
    delta = random_low_rank(out=2048, rank=4, width=1024)
    ascending = delta.dense().abs().flatten().sort().values.double()
    n = len(ascending)
    whole = 2 * (torch.arange(1, n + 1) * ascending).sum() / (n * ascending.sum()) - (n + 1) / n
    # two thirds of a million values: the standard error is about 5e-4
    assert layer_statistics(delta)["gini"] == pytest.approx(whole.item(), abs=2e-3)


def test_adapter_statistics_weigh_layers_and_elements() -> None:
    half = LowRank(torch.ones(1, 4), torch.tensor([[1.0], [0.0]]), 1.0)
    full = LowRank(torch.ones(1, 4), torch.ones(6, 1), 1.0)
    statistics = adapter_statistics({"half": half, "full": full})
    assert statistics["layers"]["half"]["share_zero"] == 0.5
    assert statistics["mean_over_layers"]["share_zero"] == 0.25
    assert statistics["over_elements"]["share_zero"] == 4 / 32
    assert statistics["over_elements"]["l2"] == pytest.approx(math.sqrt(4 + 24))
