"""Our merged models against mergekit's, which merges full checkpoints: base plus each adapter's delta."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from paft.config import MergeConfig, Normalize, Rescale, Space
from paft.delta.statistics import read_adapter
from paft.merge import methods
from paft.merge.apply import apply_adapters, merge_adapters
from paft.merge.methods import (
    Breadcrumbs,
    BreadcrumbsTies,
    DareLinear,
    DareTies,
    Della,
    DellaLinear,
    Linear,
    ModelStock,
    Ram,
    RamPlus,
    Sce,
    Slerp,
    TaskArithmetic,
    Ties,
)
from paft.merge.sparsify import bernoulli_mask, mask_by_rank, random, without_outliers

pytest.importorskip("mergekit")
from mergekit import sparsify
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.merge_methods import generalized_task_arithmetic as gta
from mergekit.options import MergeOptions

TOLERANCE = {"rtol": 0, "atol": 2e-7}
"""mergekit subtracts float32 weights of up to 0.1, which moves a delta by half their last place."""
ADAPTERS = {"sft": (4, 1), "preference": (6, 2)}
"""Branch -> rank and seed."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, and per branch an adapter folder and the full checkpoint it makes of the base."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=64, num_hidden_layers=2, tie_word_embeddings=False, **sizes)
    LlamaForCausalLM(config).save_pretrained(str(root / "base"))
    for branch, (rank, seed) in ADAPTERS.items():
        save_adapter(root / "base", root / f"{branch}-adapter", rank, seed)
        apply_adapters(root / "base", {branch: root / f"{branch}-adapter"}, root / branch)
    return root


def save_adapter(base: Path, folder: Path, rank: int, seed: int) -> None:
    lora = LoraConfig(r=rank, lora_alpha=rank, target_modules=["q_proj", "down_proj"])
    model = get_peft_model(LlamaForCausalLM.from_pretrained(str(base)), lora)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.15
    model.save_pretrained(str(folder), save_embedding_layers=False)


def weights_of(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def with_mergekit(
    models: Path, out: Path, method: str, parameters: list[dict[str, Any]], **shared: Any
) -> Path:
    entries = [
        {"model": str(models / branch), "parameters": own}
        for branch, own in zip(ADAPTERS, parameters, strict=True)
    ]
    base = models / ("sft" if method == "slerp" else "base")  # slerp's base_model is its end at t = 0
    settings = {"merge_method": method, "dtype": "float32", "models": entries, "parameters": shared}
    settings |= {} if method == "linear" else {"base_model": str(base)}
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
    run_merge(MergeConfiguration.model_validate(settings), str(out), options)
    return out


def with_paft(models: Path, out: Path, method: MergeConfig) -> Path:
    adapters = {branch: models / f"{branch}-adapter" for branch in ADAPTERS}
    merge_adapters(models / "base", adapters, method, out)
    return out


W = [{"weight": 0.7}, {"weight": 0.3}]
WD = [{"weight": 0.7, "density": 0.5}, {"weight": 0.3, "density": 0.25}]


def with_options(parameters: list[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
    return [each | options for each in parameters]


TIES = {"weights": [0.7, 0.3], "density": 0.5, "preference_density": 0.25}
CASES: dict[str, tuple[MergeConfig, tuple[str, list[dict[str, Any]], dict[str, Any]]]] = {
    "linear": (Linear(weights=[0.7, 0.3]), ("linear", W, {})),
    "linear 2, 1": (Linear(weights=[2, 1]), ("linear", [{"weight": 2}, {"weight": 1}], {})),
    "task_arithmetic": (
        TaskArithmetic(weights=[0.7, 0.3], scale=0.6),
        ("task_arithmetic", W, {"lambda": 0.6}),
    ),
    "slerp": (Slerp(t=0.3, space=Space.full), ("slerp", [{}, {}], {"t": 0.3})),
    "ties": (Ties(**TIES), ("ties", WD, {})),
    "ties lambda": (Ties(**TIES, scale=0.7), ("ties", WD, {"lambda": 0.7})),
    "ties sum": (Ties(**TIES, normalize=Normalize.none), ("ties", WD, {"normalize": False})),
    "dare_linear": (DareLinear(weights=[0.7, 0.3], density=1), ("dare_linear", W, {})),
    "dare_ties": (DareTies(weights=[0.7, 0.3], density=1), ("dare_ties", W, {})),
    "dare_ties mean": (
        DareTies(weights=[0.7, 0.3], density=1, normalize=Normalize.weights),
        ("dare_ties", W, {"normalize": True}),
    ),
    "breadcrumbs": (Breadcrumbs(**TIES, gamma=0.1), ("breadcrumbs", with_options(WD, gamma=0.1), {})),
    "breadcrumbs mean": (
        Breadcrumbs(**TIES, gamma=0.1, normalize=Normalize.weights),
        ("breadcrumbs", with_options(WD, gamma=0.1), {"normalize": True}),
    ),
    "breadcrumbs more than all": (
        Breadcrumbs(weights=[0.7, 0.3], density=0.95, gamma=0.2),
        ("breadcrumbs", with_options(W, density=0.95, gamma=0.2), {}),
    ),
    "breadcrumbs_ties": (
        BreadcrumbsTies(**TIES, gamma=0.1),
        ("breadcrumbs_ties", with_options(WD, gamma=0.1), {}),
    ),
    "della": (Della(weights=[0.7, 0.3], density=1), ("della", W, {})),
    "della_linear": (DellaLinear(weights=[0.7, 0.3], density=1), ("della_linear", W, {})),
    "sce": (Sce(), ("sce", [{}, {}], {})),
    "sce density": (Sce(density=0.3), ("sce", [{}, {}], {"select_topk": 0.3})),
    "ram": (Ram(epsilon=0.05), ("ram", [{}, {}], {"epsilon": 0.05})),
    "ram_plus": (
        RamPlus(epsilon=0.05, r=0.5, alpha=0.4),
        ("ramplus_tl", [{}, {}], {"epsilon": 0.05, "r": 0.5, "alpha": 0.4}),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_merged_model_against_mergekit(models: Path, tmp_path: Path, name: str) -> None:
    method, (mergekit_name, parameters, shared) = CASES[name]
    theirs = weights_of(with_mergekit(models, tmp_path / "theirs", mergekit_name, parameters, **shared))
    ours = weights_of(with_paft(models, tmp_path / "ours", method))
    assert ours.keys() == theirs.keys()
    for tensor in ours:
        torch.testing.assert_close(
            ours[tensor], theirs[tensor], **TOLERANCE, msg=lambda m, t=tensor: f"{t}: {m}"
        )


def test_model_stock_of_deltas_that_share_a_direction_against_mergekit(models: Path, tmp_path: Path) -> None:
    """Two trainings of one task: the second adapter is the first with noise of half its size in both factors."""
    (tmp_path / "base").symlink_to(models / "base")
    for number, branch in enumerate(ADAPTERS):
        save_adapter(tmp_path / "base", tmp_path / f"{branch}-adapter", rank=4, seed=1)
        file = tmp_path / f"{branch}-adapter" / "adapter_model.safetensors"
        drawn = torch.Generator().manual_seed(7)
        noisy = {
            n: f + number * 0.07 * torch.randn(f.shape, generator=drawn) for n, f in load_file(file).items()
        }
        save_file(noisy, file)
        apply_adapters(tmp_path / "base", {branch: tmp_path / f"{branch}-adapter"}, tmp_path / branch)
    theirs = weights_of(with_mergekit(tmp_path, tmp_path / "theirs", "model_stock", [{}, {}]))
    ours, base = weights_of(with_paft(tmp_path, tmp_path / "ours", ModelStock())), weights_of(models / "base")
    for tensor in ours:
        torch.testing.assert_close(ours[tensor], theirs[tensor], rtol=0, atol=1e-6)
    assert max(float((ours[n] - base[n]).abs().max()) for n in ours) > 0.05


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
def test_dare_below_density_1_against_mergekit_with_its_own_masks(
    models: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mergekit runs as it is; the masks it drew are read off its deltas before and after dropping."""
    drawn: list[tuple[Tensor, Tensor]] = []

    def recording(delta: Tensor, **options: Any) -> Tensor:
        drawn.append((delta, sparsify.sparsify(delta, **options)))
        return drawn[-1][1]

    monkeypatch.setattr(gta, "sparsify", recording)
    theirs = weights_of(with_mergekit(models, tmp_path / "theirs", name, WD))
    base = weights_of(models / "base")
    adapters = [read_adapter(models / f"{branch}-adapter") for branch in ADAPTERS]
    for tensor in adapters[0]:
        deltas = [adapter[tensor].dense() for adapter in adapters]
        masks = [mask_drawn_for(delta, drawn) for delta in deltas]
        arrays, kept = ([each.numpy() for each in tensors] for tensors in (deltas, masks))
        merged = getattr(methods, name)(arrays, [0.7, 0.3], density=[0.5, 0.25], masks=kept)
        # the L1 rescale of density 0.25 multiplies the error of the subtraction by about 4
        torch.testing.assert_close(base[tensor] + torch.from_numpy(merged), theirs[tensor], rtol=0, atol=1e-6)


def mask_drawn_for(delta: Tensor, drawn: list[tuple[Tensor, Tensor]]) -> Tensor:
    (kept,) = [k for d, k in drawn if d.shape == delta.shape and torch.allclose(d, delta, rtol=0, atol=1e-6)]
    return kept != 0


def test_bernoulli_against_mergekit_from_one_seed() -> None:
    delta = torch.randn(30, 50, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(3)
    theirs = sparsify.bernoulli(delta, 0.4, sparsify.RescaleNorm.l1)
    mask = bernoulli_mask(delta.shape, 0.4, np.random.RandomState(3))
    assert np.array_equal(mask, (theirs != 0).numpy())
    ours = methods.dare_linear([delta.numpy()], [1], density=0.4, masks=[mask])
    torch.testing.assert_close(torch.from_numpy(ours), theirs)


@pytest.mark.parametrize("density", [0.01, 0.3, 0.77])
def test_magnitude_against_mergekit(density: float) -> None:
    delta = torch.randn(30, 50, generator=torch.Generator().manual_seed(0))
    ours = methods.magnitude(delta.numpy(), density)
    assert np.array_equal(ours, sparsify.magnitude(delta, density).numpy())


@pytest.mark.parametrize(("density", "gamma"), [(0.3, 0.01), (0.5, 0.2), (0.9, 0.3), (0.05, 0.0)])
def test_without_outliers_against_mergekit(density: float, gamma: float) -> None:
    delta = torch.randn(30, 50, generator=torch.Generator().manual_seed(0))
    ours = without_outliers(delta.numpy(), density, gamma)(slice(None), delta.numpy())
    assert np.array_equal(ours, sparsify.magnitude_outliers(delta, density, gamma=gamma).numpy())


@pytest.mark.parametrize("density", [0.3, 0.5, 0.8])
def test_della_against_mergekit_from_one_seed(density: float) -> None:
    delta = torch.randn(30, 50, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(3)
    theirs = sparsify.della_magprune(delta, density, 0.15, sparsify.RescaleNorm.l1)
    mask = mask_by_rank(delta.numpy(), density, 0.15, np.random.RandomState(3))
    assert np.array_equal(mask, (theirs != 0).numpy())
    ours = random(delta.numpy(), density, mask, Rescale.l1)(slice(None), delta.numpy())
    torch.testing.assert_close(torch.from_numpy(ours), theirs)
