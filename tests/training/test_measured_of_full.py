"""What merges measure and learn of branches whose every weight was trained, against transformers and autograd."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from full_models import save_adapter, save_tuned, weights_of
from resumable import configured, stage_of
from safetensors.torch import load_file
from small_bases import small_base
from test_full_against_torch import plain_logps, plain_model
from tiny import sft_rows
from torch import Tensor, nn
from torch.func import functional_call

from paft.config import LocalModel
from paft.delta.base import find_name
from paft.delta.delta import StoredDelta
from paft.delta.full import read_full_delta, save_full_delta
from paft.delta.statistics import dense, in_torch
from paft.files.jsonfile import read_object
from paft.forward.batches import sft_tensors
from paft.merge.branches import read_branches
from paft.model.adapters import add_stored
from paft.model.paths import FastPaths
from paft.proof.base import load_base
from paft.training.mixed import Mixed, MixedPolicy
from paft.training.statistics import fishers, grams, linear_layers
from paft.training.statistics import weights_of as parameters_named

KINDS = {
    "llama": {"tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": True},
    "gemma2": {},
    "gpt2": {},
}
"""Heads of their own and tied ones; biases, other norms, a cap; Conv1D."""
FULL = ("sft.tuning=full", "preference.tuning=full", "sft.lr=1e-3", "preference.lr=1e-3")


def save_full(base: Path, folder: Path, seed: int, share: float = 1.0) -> Path:
    """A delta of every parameter of the model, as full fine-tuning writes it."""
    generator = torch.Generator().manual_seed(seed)
    deltas = {
        name: 0.02
        * torch.randn(p.shape, generator=generator)
        * (torch.rand(p.shape, generator=generator) < share)
        for name, p in plain_model(base).named_parameters()
    }
    save_full_delta(deltas, folder)
    return folder


@pytest.fixture(params=KINDS)
def base(request: pytest.FixtureRequest, tmp_path: Path) -> LocalModel:
    return small_base(tmp_path / "base", request.param, **KINDS[request.param])


def branches_of(base: LocalModel, at: Path, *, lora: bool) -> list[Mapping[str, StoredDelta]]:
    """Of SFT a sparse delta of all weights, of preference one that is not, or a LoRA."""
    folder = Path(base.path)
    sft = save_full(folder, at / "sft", 1, share=0.2)
    if lora:
        preference = save_adapter(folder, at / "preference", 2, target_modules="all-linear")
    else:
        preference = save_full(folder, at / "preference", 2)
    found = (
        read_branches(folder, {name: at})[name] for name, at in {"sft": sft, "preference": preference}.items()
    )
    return list(found)


def loaded(base: LocalModel) -> Any:
    return load_base(Path(base.path), base, FastPaths())


# --- statistics --------------------------------------------------------------------------------------


def test_fisher_information_of_every_parameter_against_autograd(base, tmp_path):
    sft, _ = branches_of(base, tmp_path, lora=False)
    model, rows = loaded(base), sft_rows(3)
    add_stored(model, [sft])
    found = fishers(model, parameters_named(model, sft), rows)

    plain = plain_model(Path(base.path))
    add_stored(plain, [sft])
    held = dict(plain.named_parameters())
    expected = {name: torch.zeros_like(p) for name, p in held.items()}
    for row in rows:
        plain.zero_grad()
        plain_logps(plain, row.input_ids, row.labels).backward()
        for name, p in held.items():
            expected[name] += 0 if p.grad is None else p.grad.square()
    assert {find_name(name, held) for name in found} == held.keys()
    for name, squares in found.items():
        torch.testing.assert_close(squares, expected[find_name(name, held)], rtol=1e-4, atol=1e-8)


def test_gram_matrices_are_of_linear_layers_alone(base, tmp_path):
    sft, _ = branches_of(base, tmp_path, lora=False)
    model = loaded(base)
    if model.config.model_type == "gpt2":
        with pytest.raises(ValueError, match=r"stored as \[in, out\] \(Conv1D\); .* merge=fisher"):
            linear_layers(model, parameters_named(model, sft))
        return
    layers = linear_layers(model, parameters_named(model, sft))
    tied = model.config.tie_word_embeddings
    linear = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert set(layers) == linear - ({"lm_head.weight"} if tied else set())
    sums, alike = grams(model, layers, sft_rows(2))
    assert sums.keys() | alike.keys() == set(layers)


# --- coefficients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [False, True], ids=["full+full", "full+lora"])
def test_mixed_weights_against_a_functional_call(base, tmp_path, lora):
    """Log-probabilities, and gradients of every coefficient, of transformers' model with weights base + sum c delta."""
    branches, rows = branches_of(base, tmp_path, lora=lora), sft_rows(3)
    policy = MixedPolicy(loaded(base), branches, [0.7, 0.4])
    policy.train()
    ours = policy(*sft_tensors(rows, 0)).sum()
    ours.backward()

    plain = plain_model(Path(base.path))
    held = dict(plain.named_parameters())
    numbers = {name: torch.tensor([0.7, 0.4], requires_grad=True) for name in policy.coefficients}
    mixed: dict[str, Tensor] = {}
    for name, c in numbers.items():
        weight = held[find_name(name, held)]
        deltas = [dense(in_torch(b[name].load())).view_as(weight) if name in b else 0 for b in branches]
        mixed[find_name(name, held)] = weight.detach() + c[0] * deltas[0] + c[1] * deltas[1]

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = plain.config

        def __call__(self, ids: Tensor, **kwargs: Any) -> Any:
            return functional_call(plain, mixed, (ids,), kwargs, tie_weights=True)

    whole: Any = Whole()
    total = sum(plain_logps(whole, row.input_ids, row.labels) for row in rows)
    torch.testing.assert_close(ours, total, rtol=1e-5, atol=1e-3)
    names = list(numbers)
    expected = torch.autograd.grad(total, [numbers[n] for n in names], allow_unused=True)
    for name, slope in zip(names, expected, strict=True):
        found = policy.coefficients[name].grad
        if slope is None:
            assert found is None, name
            continue
        torch.testing.assert_close(found, slope, rtol=1e-3, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def test_the_reference_of_mixed_weights_is_the_base(base, tmp_path):
    branches, tensors = branches_of(base, tmp_path, lora=True), sft_tensors(sft_rows(2), 0)
    policy = MixedPolicy(loaded(base), branches, [1.0, 1.0])
    with torch.no_grad():
        before = policy(*tensors)
        with policy.reference():
            alone = policy(*tensors)
        assert torch.equal(policy(*tensors), before) and not torch.equal(alone, before)
    with torch.no_grad():
        expected = MixedPolicy(loaded(base), [{}, {}], [1.0, 1.0])(*tensors)
    assert torch.equal(alone, expected)


def test_linear_layers_of_two_adapters_add_factors_and_form_no_delta(tmp_path):
    base = small_base(tmp_path / "base", "llama")
    folders = {
        name: save_adapter(tmp_path / "base", tmp_path / name, i)
        for i, name in enumerate(("sft", "preference"))
    }
    branches = [read_branches(tmp_path / "base", {name: at})[name] for name, at in folders.items()]
    policy = MixedPolicy(loaded(base), branches, [1.0, 1.0])
    assert not policy.mixing and len(policy.layers) == len(policy.coefficients)
    assert all(isinstance(layer, Mixed) for layer in policy.layers)


# --- stages ------------------------------------------------------------------------------------------


def merged(tmp_path: Path, *words: str) -> tuple[Any, Path]:
    """The merge stage of a smoke cell, run, and its folder."""
    stage, context = stage_of(configured(tmp_path, "evaluate.limit=1", *words), "merge")
    return stage, context.store.ensure(stage, context.run)


@pytest.mark.parametrize("merge", ["fisher", "regmean"])
def test_statistics_of_a_full_branch_are_of_what_its_delta_changes(tmp_path, merge):
    stage, folder = merged(tmp_path, *FULL, f"merge={merge}", "merge.num_rows=4")
    store = tmp_path / "stages"
    statistics = store / "statistics" / stage.inputs["sft_statistics"].key
    names = set(load_file(statistics / "statistics.safetensors")) | set(
        read_object(statistics / "alike.json")
    )
    delta = read_full_delta(store / "sft" / stage.inputs["sft"].key / "delta").keys()
    if merge == "fisher":
        assert names == delta
    else:
        assert names == {n for n in delta if "proj" in n or "lm_head" in n}
    assert all(w.isfinite().all() for w in weights_of(folder).values())


def test_learnt_coefficients_of_full_branches_lower_the_loss(tmp_path):
    stage, _ = merged(tmp_path, *FULL, "merge=learned", "merge.num_rows=8", "merge.steps=8")
    learnt = tmp_path / "stages/coefficients" / stage.inputs["coefficients"].key
    losses = read_object(learnt / "stage.json")["metrics"]
    assert losses["loss_after"] < losses["loss_before"]
    coefficients = read_object(learnt / "coefficients.json")
    assert {"model.embed_tokens.weight", "model.norm.weight"} <= coefficients.keys()


def test_branches_that_are_taken_as_whole_models_are_measured_too(tmp_path):
    """The same Fisher information as of the delta that the model is the base plus."""
    base = tmp_path / "base"
    small_base(base, "llama")
    for seed, name in enumerate(("sft", "preference"), 1):
        save_tuned(base, tmp_path / name, seed)
    words = ("model=local", f"model.path={base}", "merge=fisher", "merge.num_rows=2")
    taken = [f"{name}.checkpoint={tmp_path / name}" for name in ("sft", "preference")]
    stage, folder = merged(tmp_path / "run", *words, *taken)
    statistics = tmp_path / "run/stages/statistics" / stage.inputs["sft_statistics"].key
    assert load_file(statistics / "statistics.safetensors").keys() == weights_of(base).keys()
    before = weights_of(base)
    assert all(not torch.equal(w, before[n]) for n, w in weights_of(folder).items())
