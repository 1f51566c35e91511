"""Merges at equal norm, weights as two numbers, and merged weights stored in another type."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_merge_apply import save_adapter, save_base
from transformers import LlamaForCausalLM

from paft.config import DType, MergeConfig, Norm, Space
from paft.delta.adapter import read_adapters
from paft.delta.statistics import read_adapter
from paft.files.jsonfile import read_object, write_json
from paft.files.safetensors import read_checkpoint
from paft.merge.apply import apply_adapters, merge_adapters, variant
from paft.merge.methods import Linear, Slerp, TaskArithmetic, Ties
from paft.merge.norm import adapter_norm

SIZES = {"sft": (1, 0.02), "preference": (2, 0.2)}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapters(base, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {name: save_adapter(base, folder / name, seed, size) for name, (seed, size) in SIZES.items()}


@pytest.fixture(scope="module")
def norms(adapters) -> dict[str, float]:
    """By plain torch, over all tensors together."""
    dense = {n: [d.dense().double() for d in read_adapter(f).values()] for n, f in adapters.items()}
    return {name: math.sqrt(sum(float(d.square().sum()) for d in deltas)) for name, deltas in dense.items()}


def merged(base: Path, adapters: dict[str, Path], method: MergeConfig, out: Path) -> tuple[dict, dict]:
    """The report, and the merged delta of every tensor."""
    report = merge_adapters(base, adapters, method, out)
    before, after = (load_file(folder / "model.safetensors") for folder in (base, out))
    return report, {name: after[name] - before[name] for name in after}


def test_norm_of_an_adapter_is_frobenius_over_all_tensors(adapters, norms):
    for name, adapter in read_adapters(adapters).items():
        assert adapter_norm(adapter) == pytest.approx(norms[name], rel=1e-6)
    assert norms["preference"] > 5 * norms["sft"]


@pytest.mark.parametrize(
    "method",
    [Linear(), TaskArithmetic(scale=3.0), Slerp(), Slerp(space=Space.full), Ties(density=0.2)],
    ids=lambda m: type(m).__name__,
)
def test_merged_deltas_come_to_one_norm_and_keep_their_direction(base, adapters, norms, tmp_path, method):
    common = math.sqrt(norms["sft"] * norms["preference"])
    _, plain = merged(base, adapters, method, tmp_path / "plain")
    method.norm = Norm.merged
    report, found = merged(base, adapters, method, tmp_path / "merged")

    assert report["norm"] == pytest.approx(common, rel=1e-6)
    assert report["delta_l2"] == pytest.approx(common, rel=1e-5)
    factor = common / math.sqrt(sum(float(d.double().square().sum()) for d in plain.values()))
    for name, delta in found.items():
        torch.testing.assert_close(delta, plain[name] * factor, rtol=0, atol=2e-6)  # differences of weights


def test_branches_come_to_one_norm_before_they_are_merged(base, adapters, norms, tmp_path):
    common = math.sqrt(norms["sft"] * norms["preference"])
    factors = [common / norms[name] for name in ("sft", "preference")]
    _, found = merged(base, adapters, Ties(density=0.5, norm=Norm.branches), tmp_path / "branches")
    # equal branches by hand: peft's scaling is alpha / r, here 1
    by_hand = {}
    for (name, folder), factor in zip(adapters.items(), factors, strict=True):
        deltas = read_adapter(folder)
        by_hand[name] = save_adapter(base, tmp_path / name, *SIZES[name])
        _scale_alpha(by_hand[name], factor)
        assert read_adapter(by_hand[name]).keys() == deltas.keys()
    _, expected = merged(base, by_hand, Ties(density=0.5), tmp_path / "by_hand")

    assert any(d.any() for d in found.values())
    for name, delta in found.items():
        torch.testing.assert_close(delta, expected[name], rtol=0, atol=2e-6)


def _scale_alpha(folder: Path, factor: float) -> None:
    config = read_object(folder / "adapter_config.json")
    write_json(folder / "adapter_config.json", config | {"lora_alpha": config["lora_alpha"] * factor})


def test_a_branch_of_zero_has_no_norm_to_share(base, adapters, tmp_path):
    dead = save_adapter(base, tmp_path / "dead", 3, 0.0)
    with pytest.raises(ValueError, match=r"the preference delta is zero; lower lambda or set merge.norm=own"):
        merge_adapters(base, adapters | {"preference": dead}, Ties(norm=Norm.branches), tmp_path / "out")


def test_weights_as_two_numbers_are_the_same_merge():
    assert Linear(sft_weight=0.3).weights == [0.3, 1.0]
    assert Ties(weights=[0.2, 0.4], preference_weight=0.9).weights == [0.2, 0.9]


def test_variant_names_the_options_that_are_set():
    assert "norm=" not in variant(Linear()) and "dtype" not in variant(Linear())
    assert "norm=merged dtype=float32" in variant(Linear(norm=Norm.merged, dtype=DType.float32))
    assert variant(Linear(sft_weight=0.3)) == variant(Linear(weights=[0.3, 1.0]))


# --- the type of what is stored ------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "10KB"}], ids=["single", "sharded"])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("dtype", DType)
def test_merged_weights_are_stored_as_asked(tmp_path, stored, dtype, shards):
    base = save_base(tmp_path / "base", stored, **shards)
    adapters = {n: save_adapter(base, tmp_path / n, seed, size) for n, (seed, size) in SIZES.items()}
    out = tmp_path / "out"
    apply_adapters(base, adapters, out, dtype)

    before, after = _tensors(base), _tensors(out)
    deltas = [read_adapter(folder) for folder in adapters.values()]
    assert before.keys() == after.keys() and len(deltas[0]) == 4
    for name, weight in after.items():
        if name not in deltas[0]:
            assert weight.dtype == stored and torch.equal(weight, before[name]), name
            continue
        exact = before[name].float() + sum(d[name].dense() for d in deltas)
        wanted = getattr(torch, dtype.value)
        assert weight.dtype == wanted
        torch.testing.assert_close(weight.float(), exact.to(wanted).float(), rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("dtype", DType)
def test_a_stored_model_says_what_it_is(tmp_path, dtype):
    base = save_base(tmp_path / "base", torch.bfloat16, max_shard_size="10KB")
    adapters = {n: save_adapter(base, tmp_path / n, seed, size) for n, (seed, size) in SIZES.items()}
    out = tmp_path / "out"
    report = merge_adapters(base, adapters, Linear(dtype=dtype), out)

    model = LlamaForCausalLM.from_pretrained(str(out), dtype="auto")
    assert model.dtype == getattr(torch, dtype.value)
    sizes = sum(s.end - s.begin for tensors in read_checkpoint(out).values() for s in tensors.values())
    assert read_object(out / "model.safetensors.index.json")["metadata"]["total_size"] == sizes
    assert (report["rounded_back"] == 0) is (dtype is DType.float32)


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def test_float32_weights_must_not_be_rounded_by_the_evaluation(compose):
    words = ("model=tiny", "model.dtype=bfloat16", "merge.dtype=float32")
    with pytest.raises(ValueError, match=r"add evaluate.dtype=float32"):
        compose(*words)
    assert compose(*words, "evaluate.dtype=float32").merge.dtype is DType.float32
