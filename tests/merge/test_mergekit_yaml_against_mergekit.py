"""One YAML file, run by mergekit and here: the same model, to the rounding of float32."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from full_models import save_adapter, save_base, save_tuned, weights_of
from torch import Tensor

from paft.delta.rows import Array
from paft.merge.apply import write_model
from paft.merge.mergekit.run import plan_recipe

pytest.importorskip("mergekit")
from mergekit import sparsify
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.merge_methods import generalized_task_arithmetic as gta
from mergekit.options import MergeOptions

FLOAT32 = {"rtol": 0, "atol": 1e-6}
"""mergekit sums weights of up to 1 (norms) in another order."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, three models fine-tuned from it (one in part, one in shards), and an adapter."""
    root = tmp_path_factory.mktemp("models")
    base = save_base(root / "base")
    save_tuned(base, root / "a", 1)
    save_tuned(base, root / "b", 2, max_shard_size="20KB")
    save_tuned(base, root / "c", 3, trained=lambda name: "mlp" in name or "norm" in name)
    save_tuned(base, root / "far", 4, size=0.1)
    save_adapter(base, root / "lora", 5)
    return root


def filled(text: str, models: Path, tmp_path: Path) -> Path:
    """The text as a file, with `MODELS/` the folder of the models."""
    path = tmp_path / "config.yml"
    path.write_text(text.replace("MODELS", str(models)))
    return path


def with_mergekit(path: Path, out: Path) -> dict[str, Tensor]:
    config = MergeConfiguration.model_validate(yaml.safe_load(path.read_text()))
    scratch = str(out.with_name("lora-cache"))
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True, lora_merge_cache=scratch)
    run_merge(config, str(out), options)
    return weights_of(out)


def with_paft(path: Path, out: Path, **options: Any) -> dict[str, Tensor]:
    recipe = plan_recipe(path, **options)
    write_model(recipe.merge, out)
    recipe.write_beside(out)
    return weights_of(out)


def assert_same_model(path: Path, tmp_path: Path, **tolerance: float) -> dict[str, Tensor]:
    ours, theirs = with_paft(path, tmp_path / "ours"), with_mergekit(path, tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        torch.testing.assert_close(
            ours[name], tensor, **tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )
    return ours


CASES = {
    "linear": """
        merge_method: linear
        models: [{model: MODELS/a, parameters: {weight: 0.7}}, {model: MODELS/b, parameters: {weight: 0.5}}]
        dtype: float32""",
    "linear of three with the base, not normalized": """
        merge_method: linear
        models:
          - {model: MODELS/a, parameters: {weight: 0.7}}
          - {model: MODELS/base, parameters: {weight: 0.4}}
          - {model: MODELS/c, parameters: {weight: 1}}
        parameters: {normalize: false}""",
    "linear with a base_model that no list has": """
        merge_method: linear
        base_model: MODELS/base
        models: [{model: MODELS/a}, {model: MODELS/b}]
        parameters: {weight: 0.3}""",
    "task_arithmetic": """
        merge_method: task_arithmetic
        base_model: MODELS/base
        models: [{model: MODELS/a, parameters: {weight: 0.7}}, {model: MODELS/b, parameters: {weight: -0.3}}]
        parameters: {lambda: 0.6, density: 0.1}
        dtype: float32""",
    "task_arithmetic of one, normalized": """
        merge_method: task_arithmetic
        base_model: MODELS/base
        models: [{model: MODELS/a, parameters: {weight: 0.7}}]
        parameters: {normalize: true}""",
    "ties": """
        merge_method: ties
        base_model: MODELS/base
        models:
          - {model: MODELS/base}
          - {model: MODELS/a, parameters: {weight: 0.7, density: 0.5}}
          - {model: MODELS/b, parameters: {weight: 0.3, density: 0.25}}
        parameters: {int8_mask: true}
        dtype: float32""",
    "ties of three, summed and rescaled": """
        merge_method: ties
        base_model: MODELS/base
        models:
          - {model: MODELS/a, parameters: {weight: 0.7, density: 0.5}}
          - {model: MODELS/b, parameters: {weight: 0.3, density: 0.25}}
          - {model: MODELS/c, parameters: {weight: 1e-1, density: 1}}
        parameters: {normalize: false, rescale: true, lambda: 1.2}""",
    "ties with gradients and filters": """
        merge_method: ties
        base_model: MODELS/base
        models:
          - model: MODELS/a
            parameters:
              density: [1, 0.7, 0.1]
              weight: [{filter: mlp, value: [0.2, 0.8]}, {filter: self_attn, value: 0.3}, {value: 0.5}]
          - {model: MODELS/b, parameters: {weight: 0.4, density: [{filter: norm, value: 0}, {value: 0.001}]}}
        parameters: {normalize: [{filter: "layers.1.", value: false}, {value: true}]}
        dtype: float32""",
    "breadcrumbs of three": """
        merge_method: breadcrumbs
        base_model: MODELS/base
        models:
          - {model: MODELS/a, parameters: {weight: 0.7, density: 0.5, gamma: 0.05}}
          - {model: MODELS/b, parameters: {weight: 0.3, density: 0.25}}
          - {model: MODELS/c, parameters: {weight: 0.2, density: [{filter: norm, value: 0.001}, {value: 0.98}]}}
        parameters: {rescale: true, lambda: 1.2}""",
    "breadcrumbs_ties": """
        merge_method: breadcrumbs_ties
        base_model: MODELS/base
        models: [{model: MODELS/a, parameters: {weight: 0.7}}, {model: MODELS/b, parameters: {weight: 0.3}}]
        parameters: {density: 0.4, gamma: 0.1, normalize: true}
        dtype: float32""",
    "ram of three": """
        merge_method: ram
        base_model: MODELS/base
        models: [{model: MODELS/a}, {model: MODELS/b}, {model: MODELS/c}]
        parameters: {epsilon: 0.01}""",
    "ramplus_tl": """
        merge_method: ramplus_tl
        base_model: MODELS/base
        models: [{model: MODELS/a}, {model: MODELS/b}]
        parameters: {epsilon: [{filter: mlp, value: 0.02}, {value: 0.01}], r: 0.5, alpha: 0.6}
        dtype: float32""",
    "slerp": """
        merge_method: slerp
        base_model: MODELS/b
        models: [{model: MODELS/a}, {model: MODELS/b}]
        parameters: {t: 0.3}
        dtype: float32""",
    "slerp of weights far apart": """
        merge_method: slerp
        base_model: MODELS/base
        models: [{model: MODELS/base}, {model: MODELS/far}]
        parameters: {t: 0.6}""",
    "slerp in slices, as most files have it": """
        slices:
          - sources: [{model: MODELS/a, layer_range: [0, 4]}, {model: MODELS/far, layer_range: [0, 4]}]
        merge_method: slerp
        base_model: MODELS/a
        parameters:
          t:
            - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
            - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
            - {value: 0.5}
        dtype: float32""",
    "slices of their own weights": """
        slices:
          - sources:
              - {model: MODELS/base, layer_range: [0, 1]}
              - {model: MODELS/a, layer_range: [0, 1], parameters: {weight: 0.2}}
              - {model: MODELS/b, layer_range: [0, 1], parameters: {weight: 0.4}}
          - sources:
              - {model: MODELS/base, layer_range: [1, 4]}
              - {model: MODELS/a, layer_range: [1, 4], parameters: {weight: [0, 1]}}
              - {model: MODELS/b, layer_range: [1, 4]}
            parameters: {weight: 0.7, lambda: 0.5}
        merge_method: task_arithmetic
        base_model: MODELS/base""",
    "nuslerp of deltas": """
        merge_method: nuslerp
        base_model: MODELS/base
        models: [{model: MODELS/a, parameters: {weight: 0.7}}, {model: MODELS/b, parameters: {weight: 0.5}}]
        dtype: float32""",
    "nuslerp of weights": """
        merge_method: nuslerp
        models: [{model: MODELS/a, parameters: {weight: 0.7}}, {model: MODELS/far, parameters: {weight: 0.5}}]
        dtype: float32""",
    "adapters": """
        merge_method: task_arithmetic
        base_model: MODELS/base
        models:
          - {model: MODELS/base+MODELS/lora, parameters: {weight: 0.7}}
          - {model: MODELS/a+MODELS/lora, parameters: {weight: 0.5}}
        dtype: float32""",
    "slerp from an adapter": """
        merge_method: slerp
        base_model: MODELS/base+MODELS/lora
        models: [{model: MODELS/base+MODELS/lora}, {model: MODELS/a}]
        parameters: {t: 0.3}
        dtype: float32""",
    "dare that drops nothing": """
        merge_method: dare_ties
        base_model: MODELS/base
        models: [{model: MODELS/a, parameters: {weight: 0.7}}, {model: MODELS/b, parameters: {weight: 0.5}}]
        parameters: {density: 1.0, normalize: true}""",
    "dare_linear that drops nothing": """
        merge_method: dare_linear
        base_model: MODELS/base
        models: [{model: MODELS/a, parameters: {weight: 0.7}}, {model: MODELS/b, parameters: {weight: 0.5}}]
        dtype: float32""",
}


@pytest.mark.parametrize("name", CASES)
def test_yaml_against_mergekit(models: Path, tmp_path: Path, name: str) -> None:
    path = filled(CASES[name], models, tmp_path)
    merged = assert_same_model(path, tmp_path, **FLOAT32)
    assert any(not torch.equal(merged[name], tensor) for name, tensor in weights_of(models / "a").items())
    assert (tmp_path / "ours/mergekit_config.yml").read_text() == path.read_text()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_stored_types_against_mergekit(models: Path, tmp_path: Path, dtype: str) -> None:
    """All tensors are stored so, those that no model changes too. One unit in the last place: what lies halfway between
    two values is rounded by the last bit of a float32 sum."""
    text = CASES["ties"].replace("dtype: float32", f"dtype: float32\n        out_dtype: {dtype}")
    ulp = {"bfloat16": 2**-7, "float16": 2**-10}[dtype]
    assert_same_model(filled(text, models, tmp_path), tmp_path, rtol=ulp, atol=1e-7)
    text = (
        CASES["linear"]
        .replace("MODELS/b", "MODELS/c")
        .replace("float32", f"float32\n        out_dtype: {dtype}")
    )
    (tmp_path / "c").mkdir()
    assert_same_model(filled(text, models, tmp_path), tmp_path / "c", rtol=ulp, atol=1e-7)


def test_arithmetic_in_bfloat16_is_more_exact_here(
    models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """mergekit rounds the models before it subtracts them and after each step; here the result is rounded once."""
    exact = with_paft(filled(CASES["ties"], models, tmp_path), tmp_path / "exact")
    path = filled(CASES["ties"].replace("float32", "bfloat16"), models, tmp_path)
    ours, theirs = with_paft(path, tmp_path / "ours"), with_mergekit(path, tmp_path / "theirs")
    assert "computed in float32 and rounded to bfloat16 once" in caplog.text
    for name, tensor in exact.items():
        assert ours[name].dtype == theirs[name].dtype == torch.bfloat16
        assert torch.equal(ours[name], tensor.bfloat16())
        assert (theirs[name] - tensor).norm() >= (ours[name] - tensor).norm()


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della", "della_linear"])
@pytest.mark.parametrize("rescale", [True, False])
def test_what_is_dropped_at_random_against_mergekit_with_its_own_masks(
    models: Path, tmp_path: Path, method: str, rescale: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mergekit runs as it is; the masks it drew are read off its deltas, and given to our merge of the same file."""
    text = CASES["ties"].replace("ties", method).replace("int8_mask: true", f"rescale: {rescale}")
    path = filled(text, models, tmp_path)
    drawn: list[tuple[Tensor, Tensor]] = []

    def recording(delta: Tensor, **options: Any) -> Tensor:
        drawn.append((delta, sparsify.sparsify(delta, **options)))
        return drawn[-1][1]

    monkeypatch.setattr(gta, "sparsify", recording)
    theirs = with_mergekit(path, tmp_path / "theirs")
    base, numbers = weights_of(models / "base"), {0: "a", 1: "b"}
    tuned = {number: weights_of(models / model) for number, model in numbers.items()}

    def mask_of(of: Any, *chances: Any) -> Array:
        shape, (number, name) = getattr(of, "shape", of), (int(chances[-1][0]), chances[-1][1])
        delta = tuned[number][name] - base[name]
        (masked,) = [
            k for d, k in drawn if d.shape == delta.shape and torch.allclose(d, delta, rtol=0, atol=1e-7)
        ]
        return (masked != 0).reshape(tuple(shape)).numpy()

    monkeypatch.setattr(
        "paft.merge.mergekit.plan.tensor_generator", lambda seed, number, name: (number, name)
    )
    for drawing in ("bernoulli_mask", "mask_by_rank"):
        monkeypatch.setattr(f"paft.merge.mergekit.plan.{drawing}", mask_of)
    ours = with_paft(path, tmp_path / "ours")
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, **FLOAT32)


def test_masks_are_drawn_by_seed_input_and_tensor(models: Path, tmp_path: Path) -> None:
    path = filled(CASES["ties"].replace("ties", "dare_linear"), models, tmp_path)
    first, again, other = (
        with_paft(path, tmp_path / f"{number}", seed=seed) for number, seed in enumerate([1, 1, 2])
    )
    base = weights_of(models / "base")
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name])
        if tensor.dim() == 2:
            assert not torch.equal(tensor, other[name])
            untouched = float((tensor == base[name]).float().mean())  # 1 - 0.5 and 1 - 0.25 of both left out
            assert untouched == pytest.approx(0.5 * 0.75, abs=4 * (0.375 * 0.625 / tensor.numel()) ** 0.5)
