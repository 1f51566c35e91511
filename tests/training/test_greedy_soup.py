"""Soups of several lambdas, and greedy ones, against recipe 1 of Wortsman et al. 2022, peft and transformers."""

import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra.errors import HydraException
from peft import LoraConfig, PeftModel, get_peft_model
from small_bases import small_base
from soup_cells import branch, cells, made
from synthetic_store import PAFT, fill
from transformers import AutoModelForCausalLM

from paft.chat.tokens import Encoded
from paft.command.chosen import refuse_scored_by
from paft.command.mistakes import explain
from paft.command.unread import refuse_unused
from paft.config import RunConfig, SFTSoupConfig
from paft.data.tokens import read_sft, write_rows
from paft.files.jsonfile import read_object
from paft.graph.build import build
from paft.graph.soup import members
from paft.merge.branches import read_branches
from paft.model.base import base_folder
from paft.plan.table import describe
from paft.proof.base import load_base
from paft.report.build import Report
from paft.report.labels import labels
from paft.report.measured import chosen
from paft.training.greedy import greedy, prompt_of, validation_rows
from paft.training.mixed import MixedPolicy

LAMBDAS = "sft.soup.lambdas=[0,1e-2,1]"
GREEDY = (LAMBDAS, "sft.soup.kind=greedy")


@pytest.fixture(scope="module")
def cell(compose: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory):
    """A smoke cell of these words, in the module's one store."""
    return cells(compose, tmp_path_factory.mktemp("greedy"))


def metrics(folder: Path) -> dict[str, Any]:
    return read_object(folder / "stage.json")["metrics"]


def peft_deltas(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """What peft adds to each weight."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    layers = {n: m for n, m in model.named_modules() if hasattr(m, "get_delta_weight")}
    return {
        f"{n.removeprefix('base_model.model.')}.weight": m.get_delta_weight("default").detach()
        for n, m in layers.items()
    }


# --- the recipe ------------------------------------------------------------------------------------------


def recipe_1(accuracies: dict[frozenset[int], float], num_models: int) -> frozenset[int]:
    """The paper's words: fine-tuned models in decreasing order of ValAcc; for each, if ValAcc(average(ingredients with
    it)) >= ValAcc(average(ingredients)), it is an ingredient."""
    order = sorted(range(num_models), key=lambda i: accuracies[frozenset([i])], reverse=True)
    ingredients: frozenset[int] = frozenset()
    for i in order:
        if not ingredients or accuracies[ingredients | {i}] >= accuracies[ingredients]:
            ingredients |= {i}
    return ingredients


@pytest.mark.parametrize("num_models", [1, 2, 3, 6])
def test_greedy_chooses_what_recipe_1_of_the_paper_does(num_models: int) -> None:
    draw, sizes = random.Random(num_models), set()
    for _ in range(300):
        losses: dict[frozenset[int], float] = {}
        asked: list[frozenset[int]] = []

        def score(numbers: Any, losses: Any = losses, asked: Any = asked) -> dict[str, float]:
            asked.append(frozenset(numbers))
            # few values, so that many are equal
            return {"loss": losses.setdefault(frozenset(numbers), float(draw.randrange(3)))}

        candidates = greedy(num_models, score)
        *_, soup = (c for c in candidates if c.kept)
        assert frozenset(soup.members) == recipe_1({k: -v for k, v in losses.items()}, num_models)
        assert [frozenset(c.members) for c in candidates] == asked and len(asked) == 2 * num_models - 1
        sizes.add(len(soup.members))
    assert len(sizes) == num_models, "soups of every size were among them"


def test_trainings_without_a_finite_loss_are_left_out_or_refused() -> None:
    nan, inf = float("nan"), float("inf")
    alone = {0: nan, 1: 2.0, 2: inf}
    candidates = greedy(3, lambda numbers: {"loss": sum(alone[n] for n in numbers)})
    *_, soup = (c for c in candidates if c.kept)
    assert soup.members == (1,)
    with pytest.raises(ValueError, match="no training of the soup has a finite loss"):
        greedy(2, lambda _: {"loss": nan})


# --- real trainings --------------------------------------------------------------------------------------


@torch.no_grad()
def loss_by_transformers(base: Path, deltas: dict[str, torch.Tensor], data: Path) -> float:
    """Mean over all answer tokens of the validation rows, one row at a time."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    weights = dict(model.named_parameters())
    for name, delta in deltas.items():
        weights[name] += delta
    total, count = 0.0, 0
    for row in read_sft(data, "validation"):
        logits = model(torch.tensor([row.input_ids])).logits[0, :-1]
        labels = torch.tensor(row.labels[1:])
        total += torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum").item()
        count += int((labels >= 0).sum())
    return total / count


def test_scores_and_mean_are_those_of_peft_and_transformers(cell, caplog) -> None:
    config = cell(*GREEDY)
    soup, base = branch(config), base_folder(config.model)
    with caplog.at_level("INFO", "paft"):
        folder = made(config, soup)
    trainings = {
        f"lambda={s.config.branch.l1.weight:g} seed=42": made(config, s) for s in members(soup).values()
    }
    deltas = {name: peft_deltas(base, place / "adapter") for name, place in trainings.items()}

    def mean(names: list[str]) -> dict[str, torch.Tensor]:
        return {layer: sum(deltas[n][layer] for n in names) / len(names) for layer in deltas[names[0]]}  # type: ignore[misc]

    found = metrics(folder)
    data = made(config, soup.inputs["data"])
    assert found["rows"] == 64 and found["rows_passed_over"] == 0 and len(found["candidates"]) == 5
    for candidate in found["candidates"]:
        expected = loss_by_transformers(base, mean(candidate["members"]), data)
        assert candidate["loss"] == pytest.approx(expected, rel=1e-5)  # float32 sums of a few thousand tokens
        assert f"soup: loss {candidate['loss']:.6g} of {' + '.join(candidate['members'])}" in caplog.text
    for name, place in trainings.items():
        (alone,) = [c for c in found["candidates"] if c["members"] == [name]]
        assert alone["loss"] == pytest.approx(metrics(place)["validation/loss"], rel=1e-5), (
            "as a training says it"
        )
    kept = found["chosen"]
    assert 1 < len(kept) < 3 or len(kept) == found["trainings"]
    for layer, delta in peft_deltas(base, folder / "adapter").items():
        torch.testing.assert_close(delta, mean(kept)[layer], rtol=0, atol=1e-6)
    assert found["validation/loss"] == min(c["loss"] for c in found["candidates"] if c["kept"])
    assert chosen(folder).startswith(f"{len(kept)} of 3 trainings, {kept[0]}")


@pytest.mark.parametrize("words", [("paradigm=sequential",), ("preference=kto",), ("preference=orpo",)])
def test_preference_trainings_alone_have_the_loss_that_they_say_themselves(cell, words) -> None:
    every = "trainer.validation_rows=256"  # of KTO each pair is two
    config = cell(
        "preference.soup.seeds=[0,1]", "preference.soup.kind=greedy", "preference.max_steps=4", every, *words
    )
    soup = branch(config, "preference")
    found, *_ = [metrics(made(config, soup))["candidates"]]
    for candidate, training in zip(found[:2], members(soup).values(), strict=True):
        own = metrics(made(config, training))
        for name, value in candidate.items():
            if name not in ("members", "kept"):
                assert value == pytest.approx(own[f"validation/{name}"], rel=1e-4, abs=1e-4), name
    assert candidate["members"] == ["seed=1"] and "margins" in candidate


def test_layers_that_store_their_weight_transposed_are_mixed_as_peft_adds_to_them(tmp_path) -> None:
    model = small_base(tmp_path / "base", "gpt2")
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["c_attn", "c_fc", "c_proj"], fan_in_fan_out=True)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    base = load_base(tmp_path / "base", model)
    (deltas,) = read_branches(tmp_path / "base", {"sft": tmp_path / "adapter"}).values()
    policy = MixedPolicy(base, [deltas] * 2, [0.25, 0.75])
    ids = torch.randint(3, 250, (1, 12))
    with torch.no_grad():
        expected, ours = adapted(ids).logits, policy.base(ids).logits
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
        policy.weigh([0.0, 0.0])
        assert (policy.base(ids).logits - expected).abs().max() > 0.1


# --- the graph -------------------------------------------------------------------------------------------


def test_trainings_are_those_of_the_cells_with_these_lambdas_and_seeds(cell) -> None:
    both = branch(cell("sft.soup.lambdas=[1e-3,1e-4]", "sft.soup.seeds=[1,0]"))
    keys = [stage.key for stage in members(both).values()]
    cells = [branch(cell(f"lambda={w}", f"seed={s}")).key for w in ("1e-4", "1e-3") for s in (0, 1)]
    assert keys == cells
    assert branch(cell("sft.soup.lambdas=[1e-4,1e-3]", "sft.soup.seeds=[0,1]")).key == both.key
    assert branch(cell("sft.soup.lambdas=[1e-3]")).key == branch(cell("lambda=1e-3")).key
    assert (
        branch(cell("sft.soup.lambdas=[0,1e-3]", "lambda=5")).key
        == branch(cell("sft.soup.lambdas=[0,1e-3]")).key
    )
    assert branch(cell(LAMBDAS), "preference").key == branch(cell(), "preference").key


def test_a_greedy_soup_is_another_stage_by_its_rows(cell) -> None:
    uniform, few, many = (
        branch(cell("sft.soup.seeds=[0,1]", *more))
        for more in ((), ("sft.soup.kind=greedy", "sft.soup.num_rows=8"), ("sft.soup.kind=greedy",))
    )
    assert len({uniform.key, few.key, many.key}) == 3
    assert few.inputs["data"].key == few.inputs["0"].inputs["data"].key
    assert describe(many) == "greedy mean of 2 trainings by validation rows, seeds 0, 1"
    assert describe(branch(cell(*GREEDY))).endswith("of 3 trainings by validation rows, lambdas 0, 0.01, 1")


def test_keys_of_uniform_soups_are_what_they_were(cell) -> None:
    assert branch(cell("sft.soup.seeds=[0,1,2]")).key == "f5bce2512ac98140"
    assert branch(cell("preference.soup.seeds=[0,1]"), "preference").key == "2c618eb8e43b44b9"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sft.soup.lambdas=[1,1]"], r"soup\.lambdas must be different numbers, .* got \[1\.0, 1\.0\]"),
        (["sft.soup.lambdas=[-1,1]"], r"soup\.lambdas must be .* at least 0"),
        (["sft.soup.kind=best", "sft.soup.seeds=[0,1]"], r"sft\.soup\.kind.*best.*uniform.*greedy"),
        (
            ["sft.soup.kind=greedy"],
            r"soup\.kind=greedy chooses among two trainings or more, got one training",
        ),
        (
            ["sft.soup.kind=greedy", "sft.soup.seeds=[3]"],
            r"got soup\.seeds=\[3\]; give more in soup\.seeds or soup\.l",
        ),
        (["sft.soup.num_rows=0"], r"soup\.num_rows must be positive, got 0"),
        (["preference.soup.lambdas=[0,1]"], r"preference\.soup\.lambdas"),
        (
            ["sft.soup.lambdas=[0,1]", "sft.adapter=x"],
            r"soup\.lambdas=\[0\.0, 1\.0\] averages trainings, and sft\.adap",
        ),
        (["sft.soup.lambdas=[0,1]", "paradigm=joint"], "paradigm=joint trains one adapter"),
        (["sft.soup.lambdas=[0,1]", "sft.tuning=full"], r"soup\.lambdas=\[0\.0, 1\.0\] averages adapters"),
        (
            ["data=jsonl", "data.sft.path=a", "data.preference.path=b", *GREEDY],
            r"sft\.soup\.kind=greedy goes by validation rows, and data\.sft has none: give it a validation_path",
        ),
    ],
)
def test_what_cannot_be_such_a_soup_is_refused_before_anything_runs(cell, words, message) -> None:
    with pytest.raises((HydraException, ValueError)) as refused:
        build(cell(*words))
    assert re.search(message, explain(refused.value), re.DOTALL)


def test_a_lambda_that_no_training_has_is_refused(cell) -> None:
    soup = cell(LAMBDAS, "lambda=3")
    with pytest.raises(
        ValueError, match=r"lambda=3 has no effect: .* sft\.soup\.lambdas=\[0\.0, 0\.01, 1\.0\]"
    ):
        refuse_unused(["lambda=3"], [soup])
    refuse_unused(["lambda=3"], [soup, cell("lambda=3")])


# --- rows that choose ------------------------------------------------------------------------------------


def encoded(prompt: list[int], answer: list[int]) -> Encoded:
    return Encoded(prompt + answer, [-100] * len(prompt) + answer)


def test_validation_rows_with_the_prompt_of_a_training_row_are_passed_over(tmp_path, caplog) -> None:
    prompts = [[1, 2], [3], [4], [5], [6]]
    for split, numbers in (("train", (1, 3)), ("validation", (0, 1, 2, 3, 4))):
        rows = (encoded(prompts[n], [9, len(split)]) for n in numbers)
        write_rows(rows, Encoded, tmp_path / f"{split}.parquet")
    soup: Any = SimpleNamespace(name="sft", config=SimpleNamespace(num_rows=2))
    rows, passed = validation_rows(soup, tmp_path)
    assert [prompt_of(row) for row in rows] == [(1, 2), (4,)] and passed == 1
    assert "1 validation rows have the prompt of a training row" in caplog.text
    write_rows((encoded(p, [9]) for p in prompts), Encoded, tmp_path / "train.parquet")
    with pytest.raises(
        ValueError, match=r"each of the 5 validation rows of data\.sft has the prompt of a training row"
    ):
        validation_rows(soup, tmp_path)


def jsonl(path: Path, *questions: str) -> str:
    rows = (
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": "yes"}]}
        for q in questions
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_validation_rows_that_are_items_of_the_evaluation_are_refused(cell, tmp_path) -> None:
    from paft.evaluate.tasks.docs import tool_call

    item = tool_call()["test"][3]["request"]
    train, clean = jsonl(tmp_path / "train.jsonl", "a", "b"), jsonl(tmp_path / "clean.jsonl", "c", "d")
    stained = jsonl(tmp_path / "stained.jsonl", "c", item)

    def config(validation: str, *more: str) -> RunConfig:
        files = [
            f"data.sft.path={train}",
            f"data.sft.validation_path={validation}",
            f"data.preference.path={train}",
        ]
        return cell("data=jsonl", *files, "paradigm=sft", *(more or GREEDY))

    refuse_scored_by(config(clean))
    refuse_scored_by(config(stained, LAMBDAS))  # a uniform one chooses nothing
    with pytest.raises(
        ValueError, match=r"1 of the 2 validation rows of data\.sft are items of evaluate\.tasks\.tool_c"
    ):
        refuse_scored_by(config(stained))
    refuse_scored_by(cell(*GREEDY))  # the embedded rows


# --- the report ------------------------------------------------------------------------------------------


def test_report_has_lambdas_and_kind_and_stands_at_their_mean(tmp_path) -> None:
    def with_soup(soup: SFTSoupConfig) -> RunConfig:
        sft: Any = replace(PAFT.sft, soup=soup)
        return replace(PAFT, sft=sft)

    uniform = with_soup(SFTSoupConfig([0, 1], lambdas=[1e-3, 1e-4]))
    chosen = with_soup(SFTSoupConfig([0, 1], kind="greedy", lambdas=[1e-3, 1e-4]))  # type: ignore[arg-type]
    fill(tmp_path, [PAFT, uniform, chosen])
    of = {(r.get("sft.soup.lambdas"), r.get("sft.soup.kind")): r for r in Report(tmp_path).table}
    assert of.keys() == {(None, None), ("0.0001,0.001", None), ("0.0001,0.001", "greedy")}
    mean, best = of["0.0001,0.001", None], of["0.0001,0.001", "greedy"]
    assert mean.weight == best.weight == pytest.approx(5.5e-4) and mean["sft.soup.seeds"] == "0,1"
    assert len({r["sft_recipe"] for r in of.values()}) == len({r.family for r in of.values()}) == 3
    assert best["sft.soup.num_rows"] == 256
    assert "soup.kind=greedy" in labels([mean, best])[1]
