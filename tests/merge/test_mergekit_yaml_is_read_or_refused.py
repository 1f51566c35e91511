"""What a YAML asks for is read; what cannot be done as mergekit does it is refused by its file and key."""

import json
import logging
import shutil
from pathlib import Path

import pytest
from full_models import save_adapter, save_base, save_tuned
from hypothesis import given
from hypothesis import strategies as st

from paft.merge.__main__ import main
from paft.merge.apply import write_model
from paft.merge.mergekit.recipe import read_recipe
from paft.merge.mergekit.run import plan_recipe
from paft.model.base import byte_tokenizer

GOOD = """
merge_method: ties
base_model: MODELS/base
models:
  - {model: MODELS/a, parameters: {weight: 0.7, density: 0.5}}
  - {model: MODELS/b, parameters: {weight: 0.3, density: 0.5}}
"""
SLICES = """
merge_method: slerp
base_model: MODELS/a
slices:
  - sources: [{model: MODELS/a, layer_range: [0, 4]}, {model: MODELS/b, layer_range: [0, 4]}]
parameters: {t: 0.5}
"""
REFUSALS = {
    "no mapping": ("- a\n- b", "the file must be keys and values"),
    "no YAML": ("{a: [", "is no YAML"),
    "two documents": ("a: 1\n---\nb: 1", "is no YAML: expected a single document"),
    "no models": ("merge_method: ties", "either models or slices"),
    "both": (GOOD + "slices: [1]", "either models or slices"),
    "modules": (GOOD + "modules: {default: {}}", "modules cannot be used"),
    "unknown method": (
        GOOD.replace("ties", "karcher"),
        "merge_method must be one of linear, slerp, .*got 'karcher'",
    ),
    "chances of della": (
        GOOD.replace("ties", "della").replace("density: 0.5", "density: 0.1"),
        r"density - epsilon and density \+ epsilon must be in \(0, 1\), got density=0.1 and epsilon=0.15 for ",
    ),
    "no method": (GOOD.replace("merge_method: ties", ""), "got 'None'"),
    "no base": (GOOD.replace("base_model: MODELS/base", ""), "ties needs a base_model"),
    "no such model": (GOOD.replace("MODELS/a", "nobody/nothing"), "nobody/nothing is no folder.*hf download"),
    "twice": (GOOD.replace("MODELS/b", "MODELS/a"), "stands twice"),
    "two adapters": (GOOD.replace("MODELS/a", "a+b+c"), r"MODEL or MODEL\+ADAPTER"),
    "no weight": (
        GOOD.replace("weight: 0.7, ", ""),
        "needs the parameter weight for .*weight; add it",
    ),
    "weight of no number": (GOOD.replace("0.7", "much"), "parameter weight must be a number.*'much'"),
    "weight that is true": (GOOD.replace("0.7", "true"), "parameter weight must be a number.*True"),
    "weight that is infinite": (GOOD.replace("0.7", ".inf"), "parameter weight must be a number.*inf"),
    "normalize of no truth": (GOOD + "parameters: {normalize: 2}", "normalize must be true or false, got 2"),
    "filter": (
        GOOD.replace("0.7", "[{filter: mlp, values: 1}]"),
        "parameter weight has .*values.* in its list",
    ),
    "dtype": (GOOD + "dtype: float64", "dtype must be one of float32, bfloat16, float16"),
    "out_dtype": (GOOD + "out_dtype: int8", "out_dtype must be one of"),
    "chat_template": (GOOD + "chat_template: auto", "chat_template='auto' cannot be used"),
    "tokens": (
        GOOD + "tokenizer: {source: base, tokens: {a: {source: b}}}",
        "tokenizer.tokens cannot be used",
    ),
    "padding": (GOOD + "tokenizer: {pad_to_multiple_of: 8}", "tokenizer.pad_to_multiple_of cannot be used"),
    "two tokenizers": (GOOD + "tokenizer_source: base\ntokenizer: {source: base}", "cannot both be given"),
    "tokenizer": (
        GOOD + "tokenizer_source: union",
        "would change the embedding: it has 264 rows, the tokenizers have 259",
    ),
    "sum of 0": (
        "merge_method: linear\nmodels: [{model: MODELS/a}, {model: MODELS/b}]\nparameters: {weight: 0}",
        "weights must not sum to 0",
    ),
    "three for slerp": (
        SLICES.replace("slices:", "models: [{model: MODELS/a}, {model: MODELS/b}, {model: MODELS/base}]\nx:"),
        "slerp joins two models, got 3",
    ),
    "rows": (
        GOOD.replace("ties", "nuslerp") + "parameters: {nuslerp_flatten: false, nuslerp_row_wise: true}",
        "nuslerp_flatten=false cannot be used",
    ),
    "no t": (SLICES.replace("{t: 0.5}", "{}"), "slerp needs the parameter t"),
    "fewer layers": (SLICES.replace("4", "3"), "the slices end at layer 3 of 4"),
    "later layers": (SLICES.replace("[0, 4]", "[1, 4]"), r"\[1, 4\] stands where layer 0 is due"),
    "other layers": (
        SLICES.replace("MODELS/b, layer_range: [0, 4]", "MODELS/b, layer_range: [4, 8]"),
        "one layer_range",
    ),
    "no layers": (SLICES.replace("[0, 4]", "[4, 0]"), "layer_range must be"),
    "residual_weight": (
        SLICES.replace("- sources", "- residual_weight: 0.5\n    sources"),
        "residual_weight",
    ),
    "base in no slice": (
        SLICES.replace("slerp", "task_arithmetic").replace("base_model: MODELS/a", "base_model: MODELS/base"),
        "base_model .*base must be among the sources",
    ),
    "adapter of the base": (
        GOOD.replace("MODELS/base", "MODELS/base+MODELS/lora"),
        "has an adapter: merge it first, ties counts from one model",
    ),
    "adapter of another model": (
        "merge_method: linear\nmodels: [{model: MODELS/other+MODELS/lora, parameters: {weight: 1}}]",
        "changes .* as .*, the base has",
    ),
    "another architecture": (
        GOOD.replace("MODELS/a", "MODELS/other"),
        "head_dim=8 in the base and 4 in the other",
    ),
    "another vocabulary": (
        GOOD.replace("MODELS/a", "MODELS/renumbered"),
        "have different tokenizers: 4 tokens",
    ),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    base = save_base(root / "base", vocab_size=264)
    byte_tokenizer().save_pretrained(base)
    for seed, name in enumerate(["a", "b", "renumbered"]):
        save_tuned(base, root / name, seed)
        for file in base.glob("tokenizer*"):
            shutil.copy(file, root / name)
    tokenizer = root / "renumbered/tokenizer.json"
    content = json.loads(tokenizer.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    tokenizer.write_text(json.dumps(content))
    save_adapter(base, root / "lora", 1)
    save_base(root / "other", hidden_size=16)
    return root


@pytest.mark.parametrize("name", REFUSALS)
def test_yaml_is_refused_by_file_and_key(models: Path, tmp_path: Path, name: str) -> None:
    text, message = REFUSALS[name]
    path = tmp_path / "config.yml"
    path.write_text(text.replace("MODELS", str(models)))
    with pytest.raises(ValueError, match=message) as error:
        plan_recipe(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", [GOOD, SLICES])
def test_what_is_changed_above_runs(models: Path, tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yml"
    path.write_text(text.replace("MODELS", str(models)))
    assert plan_recipe(path).merge.names


def test_what_mergekit_does_not_read_is_said(
    models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "config.yml"
    text = SLICES.replace("{t: 0.5}", "{t: 0.5, normalize: true}") + "name: mine\n"
    path.write_text(text.replace("MODELS", str(models)))
    with caplog.at_level(logging.WARNING, "paft"):
        plan_recipe(path)
    assert "not used, by mergekit neither: name, normalize" in caplog.text


def test_tokenizer_and_template_of_the_file_go_out(models: Path, tmp_path: Path) -> None:
    for name in ("base", "a", "b"):  # an embedding with a row for every token, as mergekit wants it
        save_base(tmp_path / name, vocab_size=259) if name == "base" else save_tuned(
            tmp_path / "base", tmp_path / name, ord(name)
        )
        byte_tokenizer().save_pretrained(tmp_path / name)
    (tmp_path / "b/chat_template.jinja").write_text("of b {{ messages }}")
    for line, expected in {
        f"tokenizer_source: {tmp_path / 'b'}": "of b {{ messages }}",
        "tokenizer_source: base\nchat_template: 'mine {{ messages }}'": "mine {{ messages }}",
        "tokenizer: {source: union}": None,
    }.items():
        path, out = tmp_path / "config.yml", tmp_path / f"out {len(line)}"
        path.write_text(GOOD.replace("MODELS", str(tmp_path)) + line)
        recipe = plan_recipe(path)
        write_model(recipe.merge, out)
        recipe.write_beside(out)
        template = out / "chat_template.jinja"
        assert (template.read_text() if template.exists() else None) == expected


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        *(
                            "models",
                            "slices",
                            "sources",
                            "model",
                            "layer_range",
                            "parameters",
                            "weight",
                            "filter",
                        ),
                        *(
                            "base_model",
                            "merge_method",
                            "dtype",
                            "tokenizer",
                            "chat_template",
                            "value",
                            "path",
                        ),
                    ]
                ),
                inner,
                max_size=6,
            )
        ),
        max_leaves=30,
    )
)
def test_any_content_is_read_or_refused_in_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, content: object
) -> None:
    import yaml

    path = tmp_path_factory.mktemp("fuzz") / "config.yml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    try:
        read_recipe(path)
    except ValueError as error:
        assert str(path) in str(error)


def test_command_line_says_it_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yml"
    path.write_bytes(b"\xff\xfe")
    for config in (path, tmp_path / "missing.yaml"):
        with pytest.raises(SystemExit):
            main([str(config), f"--out={tmp_path / 'out'}"])
        said = capsys.readouterr().err
        assert said.startswith("error: ") and str(config) in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("revision", ["", "@main", f"@{'0123456789' * 4}"])
def test_repositories_come_from_the_cache(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str
) -> None:
    commit = "0123456789" * 4
    cached = tmp_path / "hub/models--somebody--tuned"
    shutil.copytree(models / "a", cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    path = tmp_path / "config.yml"
    path.write_text(GOOD.replace("MODELS/a", f"somebody/tuned{revision}").replace("MODELS", str(models)))
    expected = tmp_path / "expected.yml"
    expected.write_text(GOOD.replace("MODELS", str(models)))
    here, there = (plan_recipe(file).merge for file in (path, expected))
    assert list(here.adapters) == [f"somebody/tuned{revision}", str(models / "b")]
    for ours, theirs in zip(here.adapters.values(), there.adapters.values(), strict=True):
        assert ours.keys() == theirs.keys()
        assert all((ours[name].load()[:] == theirs[name].load()[:]).all() for name in ours)
