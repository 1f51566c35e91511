"""Fisher and RegMean against dense formulas, and the statistics they read against autograd."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny import MODEL, sft_rows

from paft.config import Statistic
from paft.delta.delta import Dense, Factors
from paft.merge.methods.fisher import Fisher, root_mean_square
from paft.merge.methods.regmean import RegMean
from paft.merge.space import plan_of, rows_merged
from paft.model.base import base_folder
from paft.proof.base import load_base
from paft.training.statistics import fishers, grams

Wide = NDArray[np.float64]
NAME = "layer.weight"


def random(*shape: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


DELTAS = [Factors(random(r, 12, seed=r), random(8, r, seed=10 + r) / 4, 0.5) for r in (3, 5)]
DENSE = [delta[:].astype(np.float64) for delta in DELTAS]


def merged(method: Any, statistics: list[NDArray[np.float32]], deltas: Any = DELTAS) -> NDArray[np.float32]:
    branches: dict[str, Any] = {"sft": {}, "preference": {}}
    plan = plan_of(method.holding([{NAME: statistic} for statistic in statistics]), branches)
    return rows_merged(plan(NAME, deltas, np.zeros((8, 12), np.float32)))


def test_fisher_against_merging_with_fisher_weights_of_fusion_bench() -> None:
    """The formula of its `merging_with_fisher_weights` on whole weights, of Fisher information of one size."""
    F = [np.square(random(8, 12, seed=s)) * 10.0**-s for s in (1, 2)]
    base = random(8, 12, seed=9).astype(np.float64)
    alike = [f.astype(np.float64) / np.sqrt(np.square(f, dtype=np.float64).mean()) for f in F]
    norms = np.array([1 / (np.linalg.norm(f) + 1e-6) for f in alike])
    shares = norms / norms.sum() * [0.3, 0.7]
    weights = [c * (f + 1e-6) for c, f in zip(shares, alike, strict=True)]
    whole = sum(w * (base + d) for w, d in zip(weights, DENSE, strict=True)) / sum(weights)
    np.testing.assert_allclose(merged(Fisher(weights=[0.3, 0.7]), F), whole - base, rtol=0, atol=1e-6)


def test_fisher_without_normalize_lets_the_larger_information_win() -> None:
    F = [np.full((8, 12), 1e-2, np.float32), np.full((8, 12), 1e-6, np.float32)]
    np.testing.assert_allclose(merged(Fisher(normalize=False), F), DENSE[0], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(merged(Fisher(), F), sum(DENSE) / 2, rtol=0, atol=1e-6)


def gram(seed: int, tokens: int = 40) -> NDArray[np.float32]:
    x = random(tokens, 12, seed=seed)
    return x.T @ x / np.float32(tokens)


@pytest.mark.parametrize("nondiagonal", [0.1, 1.0])
@pytest.mark.parametrize("dense", [False, True])
def test_regmean_against_merging_with_regmean_weights_of_fusion_bench(
    nondiagonal: float, dense: bool
) -> None:
    """The formula of its `merging_with_regmean_weights` on whole weights."""
    G, base = [gram(1), gram(2)], random(8, 12, seed=9).astype(np.float64)
    shrunk = [
        g.astype(np.float64) * (np.diag([1 - nondiagonal] * 12) + np.full((12, 12), nondiagonal)) for g in G
    ]
    products = sum(g @ (base + d).T for g, d in zip(shrunk, DENSE, strict=True))
    whole = (np.linalg.inv(sum(shrunk)) @ products).T
    deltas = [Dense(d.astype(np.float32)) for d in DENSE] if dense else DELTAS
    ours = merged(RegMean(nondiagonal=nondiagonal), G, deltas)
    np.testing.assert_allclose(ours, whole - base, rtol=0, atol=2e-6)


def test_regmean_answers_each_branch_on_inputs_of_its_own() -> None:
    """Inputs of the branches in different dimensions: each gets its own layer, as least squares does."""
    G = [np.diag([1.0] * 6 + [0.0] * 6).astype(np.float32), np.diag([0.0] * 6 + [1.0] * 6).astype(np.float32)]
    expected = np.concatenate([DENSE[0][:, :6], DENSE[1][:, 6:]], 1)
    np.testing.assert_allclose(merged(RegMean(nondiagonal=1.0), G), expected, rtol=0, atol=1e-6)


def test_a_tensor_of_one_branch_keeps_its_delta() -> None:
    zero = Factors(np.zeros((0, 12), np.float32), np.zeros((8, 0), np.float32), 1.0)
    branches: dict[str, Any] = {"sft": {}, "preference": {}}
    for method in (Fisher(scale=0.5), RegMean(scale=0.5)):
        plan = plan_of(method.holding([{NAME: gram(1)[:8]}, {}]), branches)
        ours = rows_merged(plan(NAME, [DELTAS[0], zero], np.zeros((8, 12), np.float32)))
        np.testing.assert_allclose(ours, 0.5 * DENSE[0], rtol=0, atol=1e-6)


def test_regmean_averages_what_no_inputs_were_measured_of() -> None:
    """As `merging_with_regmean_weights` does with what is no weight of a linear layer: embeddings, norms, biases."""
    deltas = [Dense(d.astype(np.float32)) for d in DENSE]
    plan = plan_of(RegMean(weights=[1.0, 3.0], scale=0.5).holding([{}, {}]), {"sft": {}, "preference": {}})
    ours = rows_merged(plan(NAME, deltas, np.zeros((8, 12), np.float32)))
    expected = 0.5 * np.average(DENSE, axis=0, weights=[1.0, 3.0])
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)


def test_methods_by_data_say_what_they_lack() -> None:
    with pytest.raises(ValueError, match=r"merge=fisher looks at training rows of each branch.*train\.py"):
        plan_of(Fisher(), {"sft": {}, "preference": {}})


# --- what is measured -----------------------------------------------------------------------------------------------


def measured() -> tuple[Any, dict[str, Any]]:
    """A model, and some of its layers."""
    model = load_base(base_folder(MODEL), MODEL)
    names = [
        n
        for n, _ in model.named_parameters()
        if n.endswith(("q_proj.weight", "k_proj.weight", "down_proj.weight"))
    ]
    return model, {name: model.get_submodule(name.removesuffix(".weight")) for name in names}


def test_grams_against_inputs_of_the_layers() -> None:
    model, layers = measured()
    sums, alike = grams(model, layers, iter(sft_rows(3)))
    expected: dict[str, Any] = {}
    for name, layer in layers.items():

        def add(_: Any, args: Any, __: Any, name: str = name) -> None:
            x = args[0][0].double()
            expected[name] = expected.get(name, 0) + x.T @ x

        layer.register_forward_hook(add)
    for row in sft_rows(3):
        model(input_ids=torch.tensor([row.input_ids]))
    assert len(sums) + len(alike) == len(layers) and all("k_proj" in name for name in alike)
    for name in layers:
        ours = sums[alike.get(name, name)]
        # float32 sums of up to 200 products
        torch.testing.assert_close(ours.double(), expected[name], rtol=1e-4, atol=1e-4)


def test_fishers_against_autograd_of_each_row() -> None:
    model, layers = measured()
    sums = fishers(model, {name: layer.weight for name, layer in layers.items()}, iter(sft_rows(3)))
    assert not any(p.requires_grad for p in model.parameters())
    name = next(iter(layers))
    weight = layers[name].weight.requires_grad_()
    expected = torch.zeros_like(weight)
    for row in sft_rows(3):
        logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]
        labels = torch.tensor(row.labels)[1:]
        nll = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
        expected += torch.autograd.grad(nll, weight)[0].square()
    torch.testing.assert_close(sums[name], expected, rtol=1e-4, atol=1e-10)
    assert root_mean_square({name: expected.numpy()}) > 0


def test_each_method_asks_for_its_statistic() -> None:
    assert (Fisher.needs, RegMean.needs) == (Statistic.fisher, Statistic.gram)
