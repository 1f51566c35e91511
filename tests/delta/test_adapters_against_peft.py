"""Every kind of LoRA folder that peft writes, applied to its base, against peft's own `merge_and_unload`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from small_bases import small_base, texts
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from paft.delta.adapter import describe_adapter, read_adapter
from paft.merge.apply import apply_adapters

WEIGHTS = "adapter_model.safetensors"
ALL = {"target_modules": "all-linear"}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "gpt2": {"tie_word_embeddings": False},
    "gpt_neox": {"tie_word_embeddings": False},
    "phi3": {"tie_word_embeddings": False},
}
EMBEDDING = {"llama": "embed_tokens", "gpt2": "wte", "gpt_neox": "embed_in", "phi3": "embed_tokens"}
HEAD = {"llama": "lm_head", "gpt2": "lm_head", "gpt_neox": "embed_out", "phi3": "lm_head"}
LAYER = {"llama": "q_proj", "gpt2": "c_attn", "gpt_neox": "query_key_value", "phi3": "qkv_proj"}


def cases() -> list[Any]:
    found: list[tuple[str, str, dict[str, Any]]] = []
    for kind in KINDS:
        embedding, head, layer = EMBEDDING[kind], HEAD[kind], LAYER[kind]
        found += [
            (kind, "plain", ALL),
            (kind, "rslora", ALL | {"use_rslora": True}),
            (
                kind,
                "patterns",
                ALL | {"rank_pattern": {rf".*\.1\..*{layer}": 3}, "alpha_pattern": {layer: 5}},
            ),
            (kind, "regex", {"target_modules": rf".*\.[02]\..*{layer}"}),
            (kind, "dora", ALL | {"use_dora": True}),
            (kind, "saved", {"target_modules": [layer], "modules_to_save": [embedding, head]}),
            (kind, "embedding", {"target_modules": [layer, embedding]}),
            (kind, "head", {"target_modules": [layer, head]}),
            (kind, "tokens", {"target_modules": [layer], "trainable_token_indices": {embedding: [258, 3]}}),
            (kind, "embedding dora", {"target_modules": [layer, embedding], "use_dora": True}),
        ]
    for kind in ("gpt2", "gpt_neox"):
        found += [
            (kind, "bias all", ALL | {"bias": "all"}),
            (kind, "bias lora_only", {"target_modules": [LAYER[kind]], "bias": "lora_only"}),
            (kind, "lora_bias", ALL | {"lora_bias": True}),
        ]
    norm = {"target_modules": ["q_proj"], "modules_to_save": ["input_layernorm"]}
    found.append(("llama", "saved norms", norm))
    return [pytest.param(kind, options, id=f"{kind} {name}") for kind, name, options in found]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    for kind, settings in KINDS.items():
        small_base(root / kind, kind, **settings)
    return {kind: root / kind for kind in KINDS}


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def save_adapter(base: Path, folder: Path, seed: int = 1, **options: Any) -> Path:
    """A LoRA of peft's with every trained value away from its start, and the biases too where they are trained."""
    settings = {"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM"} | options
    model = get_peft_model(load(base), LoraConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    for parameter in (p for p in model.parameters() if p.requires_grad):
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    return folder


def logits_of(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor(texts(24, 24))).logits


def applied(base: Path, adapter: Path, out: Path) -> Tensor:
    apply_adapters(base, {"sft": adapter}, out)
    return logits_of(load(out))


def by_peft(base: Path, adapter: Path) -> Tensor:
    return logits_of(PeftModel.from_pretrained(load(base), str(adapter)).merge_and_unload())


@pytest.mark.parametrize(("kind", "options"), cases())
def test_applied_against_merge_and_unload(
    bases: dict[str, Path], tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    base, adapter = bases[kind], save_adapter(bases[kind], tmp_path / "adapter", **options)

    ours, theirs = applied(base, adapter, tmp_path / "out"), by_peft(base, adapter)

    assert (theirs - logits_of(load(base))).abs().max() > 1e-2
    # float32 products of two libraries
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_factors_of_other_types_are_read_in_float32(
    bases: dict[str, Path], tmp_path: Path, dtype: torch.dtype
) -> None:
    base, adapter = bases["llama"], save_adapter(bases["llama"], tmp_path / "adapter", **ALL)
    file = adapter / WEIGHTS
    save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file)
    ours = applied(base, adapter, tmp_path / "out")
    torch.testing.assert_close(ours, by_peft(base, adapter), atol=1e-5, rtol=1e-5)


RENAMED = {
    "adapter's name in keys": lambda key: key.replace(".weight", ".default.weight"),
    "compiled": lambda key: key.replace("base_model.model.", "base_model.model._orig_mod."),
    "sharded": lambda key: key.replace("layers.1.", "layers.1._fsdp_wrapped_module."),
    "wrapped twice": lambda key: key.replace("base_model.model.", "base_model.model.base_model.model."),
    "without the head's model": lambda key: key.replace("base_model.model.model.", "base_model.model."),
}


@pytest.mark.parametrize("how", RENAMED)
def test_prefixes_of_other_tools(bases: dict[str, Path], tmp_path: Path, how: str) -> None:
    base, adapter = bases["llama"], save_adapter(bases["llama"], tmp_path / "adapter", **ALL)
    theirs = by_peft(base, adapter)
    tensors = load_file(adapter / WEIGHTS)
    renamed = {RENAMED[how](name): tensor for name, tensor in tensors.items()}
    assert renamed.keys() != tensors.keys()
    save_file(renamed, adapter / WEIGHTS)
    ours = applied(base, adapter, tmp_path / "out")
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_base_saved_without_the_prefix_of_its_model(bases: dict[str, Path], tmp_path: Path) -> None:
    """As openai-community/gpt2 on the hub: `h.0.attn...` where the model has `transformer.h.0.attn...`."""
    adapter = save_adapter(bases["gpt2"], tmp_path / "adapter", **ALL)
    bare = tmp_path / "bare"
    small_base(bare, "gpt2", **KINDS["gpt2"])
    file = bare / "model.safetensors"
    names = {name: name.removeprefix("transformer.") for name in load_file(file)}
    save_file({names[n]: t for n, t in load_file(file).items()}, file, metadata={"format": "pt"})
    ours = applied(bare, adapter, tmp_path / "out")
    torch.testing.assert_close(ours, by_peft(bases["gpt2"], adapter), atol=1e-5, rtol=1e-5)


def test_a_saved_weight_that_is_the_bases_is_no_delta(bases: dict[str, Path], tmp_path: Path) -> None:
    """peft saves the embedding itself beside its factors."""
    base = bases["llama"]
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    tensors, embedding = load_file(adapter / WEIGHTS), "model.embed_tokens.weight"
    whole = load_file(base / "model.safetensors")[embedding]
    save_file(tensors | {f"base_model.model.{embedding}": whole}, adapter / WEIGHTS)
    assert embedding in describe_adapter(adapter, base)
    assert embedding not in read_adapter(adapter, base)


# --- tied embeddings ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tied") / "base"
    small_base(folder, "llama", tie_word_embeddings=True)
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
)
def test_half_of_a_tied_pair_is_refused(tied: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    adapter = save_adapter(tied, tmp_path / "adapter", **options)
    with pytest.raises(ValueError, match=r"but .*base ties (it|its output head) to"):
        describe_adapter(adapter, tied)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [3, 258]},
    ],
)
def test_a_pair_that_was_trained_tied(tied: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    """Against the trained model as it is: merging in place, peft adds the factors to the shared weight twice."""
    adapter = save_adapter(tied, tmp_path / "adapter", ensure_weight_tying=True, **options)
    ours = applied(tied, adapter, tmp_path / "out")
    theirs = logits_of(PeftModel.from_pretrained(load(tied), str(adapter)))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


# --- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_qalora": True}, "use_qalora=True: its factors belong to a grouped input"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens=.*after certain tokens"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication=.*layers that the base has not"),
        ({"target_parameters": ["experts.down_proj"]}, "target_parameters=.*stacked experts"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights='pissa_niter_16'.*rewritten"),
        ({"peft_type": "IA3"}, "peft_type='IA3'; only LORA"),
        ({"lora_alpha": "much"}, "lora_alpha 'much'"),
        ({"r": 0}, "rank 0; a rank is a whole number"),
        ({"r": 10**400}, "rank 1000.*; a rank is a whole number"),
    ],
)
def test_settings_that_are_refused_by_name(
    bases: dict[str, Path], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    adapter = save_adapter(bases["llama"], tmp_path / "adapter", target_modules=["q_proj"])
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | change))
    with pytest.raises(ValueError, match=message) as error:
        apply_adapters(bases["llama"], {"sft": adapter}, tmp_path / "out")
    assert str(adapter) in str(error.value)
    assert not (tmp_path / "out").exists()


def resized(base: Path, adapter: Path) -> None:
    tensors = load_file(adapter / WEIGHTS)
    name = "base_model.model.model.embed_tokens.weight"
    save_file(tensors | {name: torch.zeros(261, 64)}, adapter / WEIGHTS)


def tokens_of(indices: list[int] | None) -> Any:
    def change(base: Path, adapter: Path) -> None:
        save_adapter(base, adapter, target_modules=["q_proj"], trainable_token_indices=[3, 4])
        settings = json.loads((adapter / "adapter_config.json").read_text())
        (adapter / "adapter_config.json").write_text(
            json.dumps(settings | {"trainable_token_indices": indices})
        )

    return change


def two_adapters(base: Path, adapter: Path) -> None:
    tensors = load_file(adapter / WEIGHTS)
    both = {
        name.replace(".weight", f".{a}.weight"): tensor.clone()
        for a in ("one", "two")
        for name, tensor in tensors.items()
    }
    save_file(both, adapter / WEIGHTS)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            tokens_of([3, 300]),
            r"trainable_token_indices of model.embed_tokens are 2 ids up to 300 .*\[2, 64\].*\[259, 64\]",
        ),
        (
            tokens_of([3, 3]),
            r"gives model.embed_tokens trainable_token_indices \[3, 3\]; these are the ids of the tokens",
        ),
        (tokens_of(None), "gives model.embed_tokens trainable_token_indices None"),
        (tokens_of([3, 4, 5]), r"are 3 ids up to 5 and its rows have shape \[2, 64\]"),
        (resized, r"embed_tokens.weight as \[261, 64\], the base has \[259, 64\]"),
        (two_adapters, "several adapters \\(one, two\\)"),
    ],
)
def test_files_that_are_refused_by_name(
    bases: dict[str, Path], tmp_path: Path, damage: Any, message: str
) -> None:
    adapter = save_adapter(bases["llama"], tmp_path / "adapter", target_modules=["q_proj"])
    damage(bases["llama"], adapter)
    with pytest.raises(ValueError, match=message):
        describe_adapter(adapter, bases["llama"])


def test_the_line_that_converts_a_pickle(bases: dict[str, Path], tmp_path: Path, run_printed: Any) -> None:
    adapter = save_adapter(bases["llama"], tmp_path / "adapter", target_modules=["q_proj"])
    name = "model.layers.0.self_attn.q_proj.weight"
    before = read_adapter(adapter, bases["llama"])[name].load()[:]
    torch.save(load_file(adapter / WEIGHTS), adapter / "adapter_model.bin")
    (adapter / WEIGHTS).unlink()
    with pytest.raises(ValueError, match="is a pickle and is not read") as error:
        read_adapter(adapter, bases["llama"])
    done = run_printed(str(error.value).partition("convert it: ")[2], tmp_path)
    assert done.returncode == 0, done.stderr
    assert (read_adapter(adapter, bases["llama"])[name].load()[:] == before).all()
