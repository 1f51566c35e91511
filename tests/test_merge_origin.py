"""`python -m paft.merge` merges into the base that the adapters were trained on, and into no other of its size."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config

from paft.merge.__main__ import main
from paft.merge.origin import difference_of_models, refuse_other_base

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 64,
}
Q = "model.layers.0.self_attn.q_proj.weight"


def save_model(
    folder: Path,
    kind: type[PreTrainedConfig] = LlamaConfig,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Path:
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(kind(**SIZES)).to(dtype).save_pretrained(folder)
    return folder


def save_adapter(base: Path, folder: Path, seed: int, **told: Any) -> Path:
    """An adapter peft has made of `base`; `told` goes into its adapter_config.json."""
    settings = {"r": 4, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    model.save_pretrained(folder)
    return tell(folder, **told)


def tell(folder: Path, **told: Any) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | told))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A Llama and two adapters of it, as peft leaves them; and models of its size that are others."""
    folder = tmp_path_factory.mktemp("origin")
    llama = save_model(folder / "llama")
    save_model(folder / "qwen", Qwen2Config)
    save_model(folder / "mistral", MistralConfig)
    save_model(folder / "tuned", seed=1)
    for seed, branch in enumerate(("sft", "preference")):
        save_adapter(llama, folder / branch, seed)
    return folder


@pytest.fixture
def here(made, tmp_path) -> Path:
    """A copy whose adapters may be told things; they still name the models of `made`."""
    return shutil.copytree(made, tmp_path / "copy")


def merge(here: Path, base: Path | str, *options: str, out: str = "out") -> Path:
    folders = {"base": base, "sft": here / "sft", "preference": here / "preference", "out": here / out}
    main(["--method=task_arithmetic", *(f"--{name}={path}" for name, path in folders.items()), *options])
    return here / out


def refusal(capsys: pytest.CaptureFixture[str], here: Path, base: Path | str, *options: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        merge(here, base, *options)
    assert stopped.value.code == 2
    assert not (here / "out").exists()
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    return said


# --- another model ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "difference"),
    [
        ("qwen", "config.json says model_type='qwen2' here and 'llama' there"),
        ("mistral", "config.json says model_type='mistral' here and 'llama' there"),
        ("tuned", "has other values there"),
    ],
)
def test_another_model_of_the_same_shapes_is_refused_with_the_difference(
    made, here, capsys, base, difference
):
    said = refusal(capsys, here, here / base)

    assert difference in said and str(made / "llama") in said and "--same-base" in said


def test_base_that_is_not_on_this_disk_is_compared_by_name(here, capsys):
    for branch in ("sft", "preference"):
        tell(here / branch, base_model_name_or_path="meta-llama/Llama-2-7b")

    assert f"was trained on meta-llama/Llama-2-7b, not on {here / 'qwen'}: the base is known as qwen." in (
        refusal(capsys, here, here / "qwen")
    )


def test_class_that_peft_has_noted_is_compared(here, capsys):
    noted = {
        "base_model_class": "LlamaForCausalLM",
        "parent_library": "transformers.models.llama.modeling_llama",
    }
    for branch in ("sft", "preference"):
        tell(here / branch, base_model_name_or_path=None, auto_mapping=noted)

    assert "that is a LlamaForCausalLM, this is a Qwen2ForCausalLM" in refusal(capsys, here, here / "qwen")
    assert merge(here, here / "llama").is_dir()


def test_one_foreign_adapter_of_two_is_refused(here, capsys):
    save_adapter(here / "tuned", here / "preference", 3)

    assert "the preference adapter" in refusal(capsys, here, here / "llama")


def test_two_adapters_of_different_fingerprints_are_refused(here, capsys):
    for branch in ("sft", "preference"):
        (here / branch / "paft.json").write_text(json.dumps({"base": f"tiny-{branch}"}))

    assert "'base' is 'tiny-sft' in the first and 'tiny-preference' in the second" in (
        refusal(capsys, here, here / "llama")
    )
    assert merge(here, here / "llama", "--same-base").is_dir()


def test_module_that_the_base_has_not_is_named(here, capsys):
    lacking = {**SIZES, "num_hidden_layers": 1}
    AutoModelForCausalLM.from_config(LlamaConfig(**lacking)).save_pretrained(here / "short")

    assert "model.layers.1.mlp.down_proj.weight" in refusal(capsys, here, here / "short", "--same-base")


# --- the same model under another name ----------------------------------------------------------------


def cached(here: Path) -> Path:
    return here / "hub" / "models--Meta-Llama--Llama-2-7b" / "snapshots" / ("0" * 40)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (lambda here: here / "renamed", None),  # the first model is still there: contents are compared
        (lambda here: here / "elsewhere" / "llama-2-7b", "/home/alice/models/Llama-2-7b/"),
        (lambda here: here / "llama-2-7b", "meta-llama/Llama-2-7b"),
        (cached, "meta-llama/Llama-2-7b"),
        (cached, "/root/.cache/huggingface/hub/models--meta-llama--Llama-2-7b/snapshots/" + "1" * 40),
        (lambda here: here / "any", ""),
    ],
)
def test_the_same_base_elsewhere_is_taken(made, here, place, name):
    base = shutil.copytree(here / "llama", place(here))
    for branch in ("sft", "preference"):
        tell(here / branch, **({} if name is None else {"base_model_name_or_path": name}))

    merged = load_file(merge(here, base) / "model.safetensors")

    right = load_file(merge(here, made / "llama", "--same-base", out="right") / "model.safetensors")
    before = load_file(base / "model.safetensors")
    assert torch.equal(merged[Q], right[Q]) and not torch.equal(merged[Q], before[Q])


def test_shards_and_float_type_make_no_other_model(made, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES)).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")

    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert difference_of_models(made / "llama", tmp_path / "shards") is None
    assert difference_of_models(made / "llama", made / "tuned") is not None


def test_two_machines_paths_of_one_base_are_one_base(here):
    for number, branch in enumerate(("sft", "preference")):
        tell(here / branch, base_model_name_or_path=f"/machine-{number}/llama")

    assert merge(here, here / "llama").is_dir()


def test_who_knows_better_says_so(here):
    for branch in ("sft", "preference"):
        tell(here / branch, base_model_name_or_path="acme/other")
    with pytest.raises(ValueError, match="--same-base"):
        refuse_other_base(here / "llama", {"sft": here / "sft"})

    assert merge(here, here / "llama", "--same-base").is_dir()


# --- the command line ---------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["--method=slerp", "--help"]])
def test_help_is_printed(capsys, words):
    with pytest.raises(SystemExit) as stopped:
        main(words)

    printed = capsys.readouterr().out
    assert stopped.value.code == 0 and "--same-base" in printed and ("--t T" in printed) == (len(words) == 2)


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ({"base": "nowhere"}, "--base must be a folder, got 'nowhere'"),
        ({"sft": "nowhere"}, "--sft must be a folder, got 'nowhere'"),
        ({"density": "2"}, "density must be"),
        ({"out": "/proc/none"}, "/proc/none"),
    ],
)
def test_what_cannot_be_merged_is_said_without_a_traceback(here, capsys, broken, told):
    words = {name: str(here / name) for name in ("sft", "preference", "out")} | {"base": str(here / "llama")}
    with pytest.raises(SystemExit) as stopped:
        main(["--method=ties", *(f"--{name}={value}" for name, value in (words | broken).items())])

    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.startswith("error: ") and told in said


def test_folder_that_is_no_adapter_is_named(here, capsys):
    (here / "sft" / "adapter_config.json").unlink()

    assert f"{here / 'sft'} is not a PEFT adapter folder" in refusal(capsys, here, here / "llama")


def test_a_base_of_other_settings_is_refused(made, here, capsys):
    """The same tensors turned by another angle are another model."""
    other = shutil.copytree(here / "llama", here / "turned")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(
        json.dumps(config | {"rms_norm_eps": 0.1, "transformers_version": "1"})
    )
    assert "config.json says rms_norm_eps=0.1 here and 1e-06 there" in refusal(capsys, here, other)
