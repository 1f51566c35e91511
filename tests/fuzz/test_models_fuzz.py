"""Fine-tuned models and mergekit YAMLs that are damaged or lie: refused by name, or merged from what they hold."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hostile import (
    Ground,
    attempt,
    bounded_memory,
    cases,
    damage,
    damaged,
    entries,
    ground,
    number,
    safetensors,
    text,
    tree,
    value,
)
from hypothesis import example, given
from hypothesis import strategies as st

from paft.delta.checkpoint import read_difference
from paft.merge.apply import apply_adapters, write_model
from paft.merge.mergekit.run import plan_recipe

pytestmark = pytest.mark.fuzz

SHAPES = {
    "model.embed_tokens.weight": [8, 4],
    "model.layers.0.up_proj.weight": [6, 4],
    "model.norm.weight": [4],
    "lm_head.weight": [8, 4],
}
HEADER, DATA = entries(SHAPES)
SETTINGS = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 1,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    "tie_word_embeddings": False,
    "quantization_config": None,
    "vocab_size": 8,
}


def model(here: Ground, name: str, weights: bytes, settings: object = SETTINGS, **more: bytes) -> Path:
    raw = settings if isinstance(settings, bytes) else json.dumps(settings).encode()
    return here.folder(name, **{"model.safetensors": weights, "config.json": raw}, **more)


def sound(here: Ground) -> Path:
    return model(here, "base", safetensors(HEADER, DATA))


def tuned_weights(header: dict[str, Any] = HEADER) -> bytes:
    return safetensors(header, bytes(byte ^ 1 for byte in DATA))


def take(here: Ground, tuned: Path) -> None:
    """What every merge does with a fine-tuned model: only the output folder is written, and only whole files."""
    base = sound(here)
    before = tree(here.inside)
    out = here.inside / "out"
    with bounded_memory():
        attempt(lambda: read_difference(base, tuned))
        attempt(lambda: apply_adapters(base, {"sft": tuned}, out))
    after = tree(here.inside)
    written = {Path(name) for name in after.keys() - before.keys()} - {Path("out")}
    assert {name: content for name, content in after.items() if name in before} == before
    assert all(path.parent == Path("out") for path in written)
    assert {path.name for path in written} <= {"model.safetensors", "config.json"}


@cases()
@given(st.lists(damage, min_size=1, max_size=3))
@example([("cut", 0.5)])
def test_damaged_weights(how: list[tuple[Any, ...]]) -> None:
    weights = tuned_weights()
    for one in how:
        weights = damaged(weights, one)
    with ground() as here:
        take(here, model(here, "tuned", weights))


names = st.sampled_from([*SHAPES, "model.rotary_emb.inv_freq", "transformer.model.norm.weight"]) | text
shapes = st.lists(st.sampled_from([0, 1, 2, 4, 6, 8, -1]) | number, max_size=3) | value


@st.composite
def lying_header(draw: st.DrawFn) -> Any:
    header = json.loads(json.dumps(HEADER))
    for _ in range(draw(st.integers(1, 3))):
        entry = draw(st.sampled_from(sorted(SHAPES)))
        match draw(st.integers(0, 3)):
            case 0 if isinstance(header.get(entry), dict):
                header[entry]["dtype"] = draw(
                    st.sampled_from(["BF16", "F16", "I32", "U8", "F8_E4M3"]) | value
                )
            case 1 if isinstance(header.get(entry), dict):
                header[entry]["shape"] = draw(shapes)
            case 2:
                header[draw(names)] = header.pop(entry, None)
            case _:
                header.pop(entry, None)
    return header


@cases()
@given(lying_header())
def test_headers_that_lie(header: Any) -> None:
    with ground() as here:
        take(here, model(here, "tuned", tuned_weights(header)))


@cases()
@given(
    st.dictionaries(st.sampled_from([*SETTINGS, "rope_scaling", "rope_theta", "text_config"]) | text, value)
)
@example({"rope_scaling": {"type": "linear", "factor": 2}})
@example({"quantization_config": {"quant_method": "\ud800"}})
@example({"rope_parameters": [1]})
def test_settings_of_any_kind(settings: dict[str, Any]) -> None:
    with ground() as here:
        take(here, model(here, "tuned", tuned_weights(), json.dumps(SETTINGS | settings).encode()))


@cases(0.5)
@given(st.binary(max_size=40) | value.map(lambda v: json.dumps(v).encode()))
def test_tokenizers_and_pickles_of_any_content(raw: bytes) -> None:
    with ground() as here:
        tuned = model(
            here, "tuned", tuned_weights(), **{"tokenizer.json": raw, "pytorch_model.bin": here.pickle}
        )
        take(here, tuned)
        (tuned / "model.safetensors").unlink()
        assert attempt(lambda: read_difference(here.inside / "base", tuned), "pickles", "python -c") is None


KEYS = (
    *(
        "models",
        "slices",
        "sources",
        "model",
        "lora",
        "path",
        "revision",
        "layer_range",
        "parameters",
        "weight",
    ),
    *("density", "t", "normalize", "filter", "value", "base_model", "merge_method", "dtype", "tokenizer"),
    *("tokenizer_source", "chat_template"),
)
METHODS = ("linear", "slerp", "nuslerp", "ties", "dare_ties", "dare_linear", "task_arithmetic")
words = st.sampled_from(["base", "tuned", *METHODS, "float32", "bfloat16", "*", "norm"])
content = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers(-3, 9) | words | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=20,
)


@cases(2.0)
@given(
    st.sampled_from(METHODS), st.dictionaries(st.sampled_from(KEYS), content, max_size=4), content, content
)
@example("ties", {}, {"weight": 1}, None)
@example("linear", {"parameters": {"weight": 1, "normalize": False}}, None, None)
@example("nuslerp", {"base_model": "\ud800"}, {"weight": 1}, {"weight": 1})
def test_recipes_of_any_content(method: str, more: dict[str, Any], first: Any, second: Any) -> None:
    with ground() as here:
        for_model = {"base": sound(here), "tuned": model(here, "tuned", tuned_weights())}
        models = [
            {"model": str(folder), "parameters": parameters}
            for folder, parameters in zip(for_model.values(), (first, second), strict=True)
        ]
        recipe = {"merge_method": method, "base_model": str(for_model["base"]), "models": models} | more
        path = here.inside / "config.yml"
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        before, out = tree(here.inside), here.inside / "out"

        def run() -> None:
            planned = plan_recipe(path)
            write_model(planned.merge, out)
            planned.write_beside(out)

        with bounded_memory():
            attempt(run)
        after = tree(here.inside)
        assert {name: held for name, held in after.items() if name in before} == before
        written = {Path(name) for name in after.keys() - before.keys()} - {Path("out")}
        assert all(path.parent == Path("out") for path in written)
