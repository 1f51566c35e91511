"""merge.output=adapter: one LoRA folder of a whole merge, held against peft, numpy's SVD and our own reader."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file, save_file
from small_bases import small_base
from test_merge_apply import save_adapter, save_base
from transformers import AutoModelForCausalLM

from paft.config import DType, MergeOutput
from paft.delta.adapter import read_adapter
from paft.merge.__main__ import main
from paft.merge.apply import plan_merge, plan_sum, write_model
from paft.merge.as_adapter import write_adapter
from paft.merge.low_rank import nearest_factors
from paft.merge.methods import DareTies, Linear, Slerp, TaskArithmetic, Ties
from paft.merge.proof import prove_adapter

TOKENS = torch.arange(24).reshape(2, 12)
EXACT = [
    Linear(weights=[0.7, 0.3]),
    Linear(weights=[2.0, 1.0], normalize=False, scale=0.5),
    TaskArithmetic(weights=[1.0, 0.5], scale=0.8),
    TaskArithmetic(norm="branches"),
    TaskArithmetic(norm="merged", scale=3.0),
    Slerp(t=0.3),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, dict[str, Path]]:
    """A float32 Llama and two adapters of different ranks and modules."""
    folder = tmp_path_factory.mktemp("adapters")
    base = save_base(folder / "base")
    sft = save_adapter(base, folder / "sft", seed=1)
    preference = save_adapter(base, folder / "preference", seed=2, r=6, target_modules=["q_proj", "up_proj"])
    return base, {"sft": sft, "preference": preference}


def logits(base: Path, adapter: Path | None = None) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = model if adapter is None else PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def settings(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    return found


@pytest.mark.parametrize("method", EXACT, ids=lambda m: f"{m.name}-{m.norm.value}")
def test_linear_merges_are_exact_in_peft(made, tmp_path, method):
    base, adapters = made
    merge = plan_merge(base, adapters, method)
    write_model(merge, tmp_path / "model")

    report = write_adapter(merge, tmp_path / "adapter")

    torch.testing.assert_close(
        logits(base, tmp_path / "adapter"), logits(tmp_path / "model"), rtol=0, atol=1e-5
    )
    assert report["rank"] == 10 and report["adapter_error"] < 1e-6  # 4 + 6; float32 products
    assert report["variant"] == merge.labels["variant"] and "rounded_back" not in report


def test_every_layer_has_one_rank_as_vllm_reads_it(made, tmp_path):
    """vLLM takes `r` for all layers, no patterns, and modules by their last names."""
    base, adapters = made
    write_adapter(plan_merge(base, adapters, Linear()), tmp_path)

    tensors, config = load_file(tmp_path / "adapter_model.safetensors"), settings(tmp_path)
    ranks = {t.shape[0] if "lora_A" in name else t.shape[1] for name, t in tensors.items()}
    assert ranks == {10} and config["r"] == config["lora_alpha"] == 10
    assert config["rank_pattern"] == config["alpha_pattern"] == {} and not config["use_rslora"]
    assert config["target_modules"] == ["down_proj", "q_proj", "up_proj"]
    assert all(t.dtype == np.float32 for t in tensors.values())


def test_modules_of_some_layers_are_named_whole(tmp_path):
    base = save_base(tmp_path / "base")
    one = save_adapter(base, tmp_path / "one", 1, target_modules=["q_proj"], layers_to_transform=[1])
    write_adapter(plan_sum(base, {"sft": one}), tmp_path / "out")

    assert settings(tmp_path / "out")["target_modules"] == ["model.layers.1.self_attn.q_proj"]
    torch.testing.assert_close(logits(base, tmp_path / "out"), logits(base, one), rtol=0, atol=1e-5)


def test_merged_adapter_is_read_and_merged_again(made, tmp_path):
    base, adapters = made
    merge = plan_merge(base, adapters, TaskArithmetic())
    write_adapter(merge, tmp_path / "once")
    again = plan_sum(base, {"merged": tmp_path / "once"})

    with merge.weights() as weights, again.weights() as others:
        assert weights.keys() == others.keys()
        for name in weights:
            np.testing.assert_allclose(
                again.delta(others[name]), merge.delta(weights[name]), rtol=0, atol=1e-7
            )


def test_layers_that_are_stored_transposed(tmp_path):
    """GPT-2's Conv1D holds [in, out]; peft asks for factors of the layer, not of what is stored."""
    base = Path(small_base(tmp_path / "base", "gpt2").path)
    folders = {}
    for seed, branch in enumerate(("sft", "preference")):
        config = LoraConfig(r=2, lora_alpha=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
        model.save_pretrained(tmp_path / branch)
        folders[branch] = tmp_path / branch
    merge = plan_merge(base, folders, Linear())
    write_model(merge, tmp_path / "model")

    write_adapter(merge, tmp_path / "adapter")

    assert settings(tmp_path / "adapter")["fan_in_fan_out"]
    torch.testing.assert_close(
        logits(base, tmp_path / "adapter"), logits(tmp_path / "model"), rtol=1e-5, atol=1e-5
    )


# --- the nearest of a rank ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", [Ties(density=0.4), DareTies(density=0.5), Slerp(space="full")])
@pytest.mark.parametrize("rank", [None, 3])
def test_error_of_a_rank_against_numpy(made, tmp_path, method, rank):
    """By Eckart and Young no delta of the rank is nearer than the SVD cut off; ours is within a per cent of it."""
    base, adapters = made
    merge = plan_merge(base, adapters, method)

    report = write_adapter(merge, tmp_path, rank=rank)

    given, lacking, total = rank or 10, 0.0, 0.0
    with merge.weights() as weights:
        for name, weight in weights.items():
            values = np.linalg.svd(merge.delta(weight).astype(np.float64), compute_uv=False)
            least = np.sqrt((values[given:] ** 2).sum() / (values**2).sum())
            assert least * 0.999 <= report["layers"][name]["adapter_error"] <= 1.01 * least + 1e-6
            lacking, total = lacking + (values[given:] ** 2).sum(), total + (values**2).sum()
    assert report["rank"] == given
    assert report["adapter_error"] == pytest.approx(np.sqrt(lacking / total), rel=0.01, abs=1e-6)


def test_full_rank_lacks_nothing(made, tmp_path):
    base, adapters = made
    merge = plan_merge(base, adapters, Ties())
    write_model(merge, tmp_path / "model")

    report = write_adapter(merge, tmp_path / "adapter", rank=64)

    assert report["rank"] == 32 and report["adapter_error"] < 1e-5  # the smaller side of every matrix
    torch.testing.assert_close(
        logits(base, tmp_path / "adapter"), logits(tmp_path / "model"), rtol=0, atol=1e-4
    )


def test_cut_is_the_same_every_time_and_of_linear_merges_too(made, tmp_path):
    base, adapters = made
    merge = plan_merge(base, adapters, Linear())

    reports = [write_adapter(merge, tmp_path / name, rank=5) for name in ("one", "two")]

    one, two = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two and reports[0] == reports[1]
    assert reports[0]["rank"] == 5 and reports[0]["adapter_error"] > 0.01


def test_factors_share_the_singular_values():
    delta = np.random.RandomState(0).standard_normal((30, 20)).astype(np.float32)
    factors = nearest_factors(delta, 4, "name")

    norms = np.linalg.norm(factors.A, axis=1), np.linalg.norm(factors.B, axis=0)
    np.testing.assert_allclose(*norms, rtol=1e-4)


# --- the proof ----------------------------------------------------------------------------------------


def test_proof_of_an_adapter(made, tmp_path):
    base, adapters = made
    merge = plan_merge(base, adapters, Ties())
    write_adapter(merge, tmp_path)

    proof = prove_adapter(merge, tmp_path)

    assert proof["max_logit_difference"] <= proof["bound"] < proof["rank_logit_difference"]

    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(settings(tmp_path) | {"target_modules": ["q_proj"]}))
    with pytest.raises(ValueError, match="is not what was merged"):
        prove_adapter(merge, tmp_path)


# --- refusals -----------------------------------------------------------------------------------------


@pytest.fixture
def with_embedding(tmp_path) -> tuple[Path, Path]:
    """A base, and an adapter that saved a changed embedding whole."""
    base = save_base(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "whole", 1, modules_to_save=["embed_tokens"])
    path = adapter / "adapter_model.safetensors"
    tensors = {n: t + 0.1 * ("embed_tokens" in n) for n, t in load_file(path).items()}
    save_file({n: t.astype(np.float32) for n, t in tensors.items()}, path)
    return base, adapter


@pytest.mark.parametrize("rank", [None, 8])
def test_what_no_lora_of_linear_layers_holds_is_refused(with_embedding, tmp_path, rank):
    base, adapter = with_embedding

    with pytest.raises(ValueError, match=r"embed_tokens.* which a LoRA adapter of linear layers cannot hold"):
        write_adapter(plan_sum(base, {"sft": adapter}), tmp_path / "out", rank=rank)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rank": 8}, "merge.rank=8 is the rank of a merged adapter; add merge.output=adapter"),
        ({"rank": 0, "output": MergeOutput.adapter}, "merge.rank must be positive or null, got 0"),
        ({"output": MergeOutput.adapter, "dtype": DType.float32}, "merge.dtype=float32 is of merged models"),
    ],
)
def test_options_that_mean_nothing_together(options, said):
    with pytest.raises(ValueError, match=said):
        Ties(**options)


def test_whole_model_without_a_rank_is_refused_before_anything_runs(compose):
    words = ["experiment=smoke", "sft.checkpoint=DIR", "merge.output=adapter"]

    with pytest.raises(ValueError, match=r"merge.output=adapter needs merge.rank.* sft.checkpoint=DIR"):
        compose(*words)
    assert compose(*words, "merge.rank=8").merge.rank == 8


def test_command_line(made, tmp_path, capsys):
    base, adapters = made
    paths = [
        f"--{name}={path}" for name, path in (adapters | {"base": base, "out": tmp_path / "out"}).items()
    ]
    main(["--method=ties", "--output=adapter", "--rank=8", *paths])

    printed = capsys.readouterr().out
    assert "adapter_error" in printed and "the rank costs" in printed
    assert read_adapter(tmp_path / "out").keys() and settings(tmp_path / "out")["r"] == 8
