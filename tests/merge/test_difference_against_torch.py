"""A whole model as a delta: what torch gives for fine-tuned minus base, and what is refused for being no such pair."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from full_models import save_base, save_tuned, weights_of
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, MistralConfig

from paft.delta.checkpoint import read_difference

FLOAT_TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def in_torch(base: Path, tuned: Path) -> dict[str, Tensor]:
    """Everything in memory; tensors of equal values left out."""
    before, after = weights_of(base), weights_of(tuned)
    deltas = {name: after[name].float() - before[name].float() for name in before.keys() & after.keys()}
    return {name: delta for name, delta in deltas.items() if delta.any()}


def rows_of(delta: dict[str, Any]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(stored.load()[:]) for name, stored in delta.items()}


def assert_same(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert ours.keys() == expected.keys()
    for name, delta in expected.items():
        assert torch.equal(ours[name].reshape(delta.shape), delta), name  # one subtraction of the same floats


@pytest.mark.parametrize("before", FLOAT_TYPES)
@pytest.mark.parametrize("after", FLOAT_TYPES)
def test_difference_of_every_float_type_against_torch(
    tmp_path: Path, before: torch.dtype, after: torch.dtype
) -> None:
    base = save_base(tmp_path / "base", dtype=before)
    tuned = save_tuned(base, tmp_path / "tuned", 1, dtype=after)
    delta = rows_of(read_difference(base, tuned))
    assert len(delta) > 30  # biases aside every tensor, also norms and embeddings
    assert_same(delta, in_torch(base, tuned))


def test_difference_of_shards_against_one_file(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", save={"max_shard_size": "20KB"})
    tuned = save_tuned(base, tmp_path / "tuned", 1)
    assert len(list(base.glob("*.safetensors"))) > 2
    assert_same(rows_of(read_difference(base, tuned)), in_torch(base, tuned))


def test_tensors_that_were_not_trained_are_no_delta(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    tuned = save_tuned(base, tmp_path / "tuned", 1, trained=lambda name: "mlp" in name, dtype=torch.float64)
    delta = read_difference(base, tuned)
    assert len(delta) == 3 * 4
    assert all("mlp" in name for name in delta)


@pytest.mark.parametrize("saves_head", ["neither", "base", "tuned", "both"])
def test_a_tied_head_is_no_tensor_of_its_own(tmp_path: Path, saves_head: str) -> None:
    base = save_base(tmp_path / "base", tie_word_embeddings=True)
    tuned = save_tuned(base, tmp_path / "tuned", 1)
    expected = in_torch(base, tuned)
    for name, folder in {"base": base, "tuned": tuned}.items():
        if saves_head in (name, "both"):
            tensors = load_file(folder / "model.safetensors")
            save_file(
                tensors | {HEAD: tensors[EMBEDDING].clone()}, folder / "model.safetensors", {"format": "pt"}
            )
    delta = rows_of(read_difference(base, tuned))
    assert HEAD not in delta
    assert_same(delta, expected)


def test_names_of_a_model_saved_without_its_head_are_the_same_tensors(tmp_path: Path) -> None:
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 32}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(GPT2Config(**sizes))
    model.save_pretrained(tmp_path / "base")
    tuned = save_tuned(tmp_path / "base", tmp_path / "tuned", 1)
    expected = in_torch(tmp_path / "base", tuned)
    path = tmp_path / "base/model.safetensors"
    short = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    short |= {"h.0.attn.bias": torch.ones(1, 1, 32, 32).tril()}  # the mask that older releases saved
    save_file(short, path, {"format": "pt"})
    delta = rows_of(read_difference(tmp_path / "base", tuned))
    assert_same(delta, {name.removeprefix("transformer."): tensor for name, tensor in expected.items()})


def tell(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def edit(folder: Path, **tensors: Tensor | None) -> None:
    path = folder / "model.safetensors"
    held = load_file(path) | tensors
    save_file({name: tensor for name, tensor in held.items() if tensor is not None}, path, {"format": "pt"})


NORM = "model.norm.weight"
REFUSALS: dict[str, tuple[Any, str]] = {
    "architecture": (lambda f: tell(f, architectures=["MistralForCausalLM"]), "architectures=.*Mistral"),
    "heads": (lambda f: tell(f, num_attention_heads=8), "num_attention_heads=4 in the base and 8"),
    "rope": (lambda f: tell(f, rope_parameters=None, rope_theta=5e5), "rope_theta=10000.0 .* and 500000.0"),
    "scaling": (
        lambda f: tell(f, rope_parameters=None, rope_scaling={"type": "linear", "factor": 2.0}),
        "scales positions by nothing .* and .*factor",
    ),
    "vocabulary": (lambda f: tell(f, vocab_size=80), "vocab_size=64 in the base and 80"),
    "epsilon": (lambda f: tell(f, rms_norm_eps=0.1), "rms_norm_eps"),
    "shape": (lambda f: edit(f, **{NORM: torch.ones(33)}), re.escape(f"{NORM} is [32] in ")),
    "missing": (lambda f: edit(f, **{NORM: None}), f"only .*base holds {NORM}"),
    "extra": (lambda f: edit(f, extra=torch.ones(3)), "only .*tuned holds extra"),
    "quantised": (
        lambda f: tell(f, quantization_config={"quant_method": "gptq", "bits": 4}),
        r"quantised \('gptq'\)",
    ),
    "whole numbers": (lambda f: edit(f, **{NORM: torch.ones(32, dtype=torch.int64)}), "stored as F32 .* I64"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds neither"),
    "no config": (lambda f: (f / "config.json").unlink(), "there is no file .*config.json"),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    save_tuned(save_base(folder / "base"), folder / "tuned", 1)
    return folder


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_no_fine_tuned_base_is_refused_with_the_difference(
    pair: Path, tmp_path: Path, name: str
) -> None:
    change, message = REFUSALS[name]
    change(shutil.copytree(pair / "tuned", tmp_path / "tuned"))
    with pytest.raises(ValueError, match=message):
        read_difference(pair / "base", tmp_path / "tuned")


def test_settings_that_change_no_forward_are_no_difference(pair: Path, tmp_path: Path) -> None:
    tuned = shutil.copytree(pair / "tuned", tmp_path / "tuned")
    expected = rows_of(read_difference(pair / "base", tuned))
    tell(tuned, attention_dropout=0.1, use_cache=False, eos_token_id=[1, 2], max_position_embeddings=9999)
    tell(tuned, rope_parameters=None, rope_theta=10000.0, rope_scaling=None)  # as transformers 4 writes it
    assert_same(rows_of(read_difference(pair / "base", tuned)), expected)


def test_a_model_of_the_base_itself_is_refused(pair: Path) -> None:
    with pytest.raises(ValueError, match=r"has the weights of .*base: there is no delta"):
        read_difference(pair / "base", shutil.copytree(pair / "base", pair / "copy"))
    other = save_base(pair / "mistral", MistralConfig)
    with pytest.raises(ValueError, match="model_type='llama' in the base and 'mistral' in the other"):
        read_difference(pair / "base", other)


def test_the_line_that_converts_pickled_weights_runs(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    tuned = save_tuned(base, tmp_path / 'a "b" c', 1)
    expected = rows_of(read_difference(base, tuned))
    torch.save(load_file(tuned / "model.safetensors"), tuned / "pytorch_model.bin")
    (tuned / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="pickles") as error:
        read_difference(base, tuned)
    line = str(error.value).partition("folder of safetensors: ")[2]
    code = shlex.split(line)[2].replace(
        "; T.from_pretrained(a).save_pretrained(b)", ""
    )  # it has no tokenizer
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)
    assert_same(rows_of(read_difference(base, Path(f"{tuned}-safetensors"))), expected)
