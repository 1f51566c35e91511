"""A branch that is a soup: the mean of trainings that differ by their seed, as one adapter, against peft."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from full_models import weights_of
from peft import PeftModel
from soup_cells import branch, cells, made
from synthetic_store import PAFT, fill
from transformers import AutoModelForCausalLM

from paft.config import RunConfig, SFTSoupConfig
from paft.files.jsonfile import read_object
from paft.graph.build import build
from paft.model.base import base_folder
from paft.plan.table import describe
from paft.report.build import Report
from paft.report.labels import labels

SEEDS = [0, 1, 2]
SOUP = f"sft.soup.seeds={SEEDS}".replace(" ", "")


@pytest.fixture(scope="module")
def cell(compose: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory):
    """A smoke cell of these words, in the module's one store."""
    return cells(compose, tmp_path_factory.mktemp("soup"))


def peft_deltas(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """What peft adds to each weight."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    layers = {n: m for n, m in model.named_modules() if hasattr(m, "get_delta_weight")}
    return {name: layer.get_delta_weight("default").detach() for name, layer in layers.items()}


@pytest.mark.parametrize("name", ["sft", "preference"])
def test_soup_is_the_plain_mean_of_the_dense_deltas_of_peft(cell, name):
    config = cell(f"{name}.soup.seeds=[0,1,2]")
    soup = branch(config, name)
    folder, base = made(config, soup), base_folder(config.model)
    members = [made(config, member) for member in soup.inputs.values()]

    deltas = [peft_deltas(base, member / "adapter") for member in members]
    ours = peft_deltas(base, folder / "adapter")

    assert ours.keys() == deltas[0].keys()
    for layer, delta in ours.items():
        mean = sum(d[layer] for d in deltas) / 3
        torch.testing.assert_close(delta, mean, rtol=0, atol=1e-6)
        assert all((d[layer] - mean).abs().max() > 1e-3 for d in deltas)  # the seeds did differ
    assert read_object(folder / "adapter" / "adapter_config.json")["r"] == 3 * 16
    assert read_object(folder / "stage.json")["metrics"]["trainings"] == 3


def test_every_merge_takes_it_as_it_takes_a_training(cell):
    config = cell(SOUP)
    merge = build(config).inputs["model"]
    folder, base = made(config, merge), base_folder(config.model)

    deltas = [peft_deltas(base, made(config, stage) / "adapter") for stage in merge.inputs.values()]
    before, after = weights_of(base), weights_of(folder)

    for layer in deltas[0]:
        name = f"{layer.removeprefix('base_model.model.')}.weight"
        torch.testing.assert_close(
            after[name], before[name] + deltas[0][layer] + deltas[1][layer], rtol=0, atol=1e-6
        )


def test_sequential_training_starts_on_top_of_it(cell):
    config = cell(SOUP, "paradigm=sequential")
    preference = branch(config, "preference")

    assert preference.inputs["sft"].key == branch(cell(SOUP)).key
    assert read_object(made(config, preference) / "stage.json")["metrics"]


def test_its_trainings_are_those_of_the_cells_with_these_seeds(cell):
    members = [stage.key for stage in branch(cell(SOUP)).inputs.values()]

    assert members == [branch(cell(f"seed={seed}")).key for seed in SEEDS]
    assert branch(cell("sft.soup.seeds=[2,0,1]")).key == branch(cell(SOUP)).key
    assert branch(cell("sft.soup.seeds=[7]")).key == branch(cell("seed=7")).key, (
        "of one it is the branch itself"
    )
    assert branch(cell(SOUP), "preference").key == branch(cell(), "preference").key


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sft.soup.seeds=[1,1]"], r"soup\.seeds must be different seeds, .* got \[1, 1\]"),
        (["sft.soup.seeds=[-1,1]"], r"soup\.seeds must be .* at least 0"),
        (
            ["preference.soup.seeds=[1,2]", "preference.adapter=x"],
            "averages trainings, and preference.adapter=x",
        ),
        (["preference.soup.seeds=[1,2]", "paradigm=joint"], "paradigm=joint trains one adapter"),
        (
            ["sft.soup.seeds=[1,2]", "sft.tuning=full"],
            r"sft.tuning=full writes no LoRA adapter, and soup.seeds=\[1, 2\] averages adapters: leave it out, or sft",
        ),
    ],
)
def test_what_cannot_be_a_soup_is_refused_before_anything_runs(cell, words, message):
    with pytest.raises(ValueError, match=message):
        build(cell(*words))


def with_soup(config: RunConfig, seeds: list[int]) -> RunConfig:
    sft: Any = replace(config.sft, soup=SFTSoupConfig(seeds))
    return replace(config, sft=sft)


def test_plan_and_report_know_it(tmp_path):
    soup = with_soup(PAFT, SEEDS)
    fill(tmp_path, [PAFT, soup, replace(soup, seed=43), with_soup(PAFT, [0, 1])])
    report = Report(tmp_path)
    of = {(r.get("sft.soup.seeds"), r.seed): r for r in report.table}

    assert describe(branch(soup)) == "mean of 3 trainings, seeds 0, 1, 2"
    assert of.keys() == {(None, 42), ("0,1,2", 42), ("0,1,2", 43), ("0,1", 42)}
    assert of["0,1,2", 42].family == of["0,1,2", 43].family, "seeds of one setting"
    assert len({of[key].family for key in of}) == len({of[key]["sft_recipe"] for key in of}) == 3
    assert of["0,1,2", 42]["sft.lr"] == PAFT.sft.lr and of["0,1,2", 42].weight == 0
    assert labels([of[None, 42], of["0,1,2", 42]]) == ["TIES", "TIES soup.seeds=0,1,2"]
