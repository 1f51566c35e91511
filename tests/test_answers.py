"""Texts, answers and margins of items, and which of them changed between two evaluations."""

import json
from pathlib import Path

import pytest
import torch
from tiny import MODEL

from paft.config import EvaluateConfig, TaskConfig, Template
from paft.evaluate.answers import FILE, read_answers, said
from paft.evaluate.stage import evaluate_model
from paft.model.base import base_folder, load_tokenizer
from paft.proof.base import load_base
from paft.report.__main__ import main
from paft.report.changes import changed_items

CONFIG = EvaluateConfig(
    name="few",
    limit=6,
    batch_size=4,
    tasks={
        "honesty": TaskConfig(task="paft_honesty", metric="acc,none"),
        "calls": TaskConfig(task="paft_tool_call", metric="exact_match,none"),
        "bits": TaskConfig(
            task="paft_mmlu_dev", metric="bits_per_byte,none", higher_is_better=False, in_average=False
        ),
    },
)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, base = tmp_path_factory.mktemp("evaluate"), base_folder(MODEL)
    evaluate_model(base, base, MODEL, Template.chatml, CONFIG, out)
    return out


def test_every_item_has_its_texts(evaluated: Path) -> None:
    values = [json.loads(line) for line in (evaluated / "samples.jsonl").read_text().splitlines()]
    assert all(set(line) == {"column", "item", "value"} for line in values)
    answers = read_answers(evaluated)
    assert list(answers) == [(line["column"], str(line["item"])) for line in values]
    assert all(row["prompt"] for row in answers.values())
    told = [row for (column, _), row in answers.items() if column != "bits"]
    assert all(row["expected"] for row in told)


def test_margins_against_plain_log_likelihoods(evaluated: Path) -> None:
    """Of a choice the margin is above 0 exactly where lm-eval counts it as right, and is the model's own."""
    values = {
        (line["column"], str(line["item"])): line["value"]
        for line in map(json.loads, (evaluated / "samples.jsonl").read_text().splitlines())
    }
    base = base_folder(MODEL)
    model, tokenizer = load_base(base, MODEL), load_tokenizer(base, Template.chatml)

    def likelihood(prompt: str, answer: str) -> float:
        context = tokenizer(prompt).input_ids
        whole = tokenizer(prompt + answer).input_ids
        with torch.no_grad():
            logps = model(torch.tensor([whole])).logits[0].float().log_softmax(-1)
        return sum(logps[at - 1, whole[at]].item() for at in range(len(context), len(whole)))

    rows = {key: row for key, row in read_answers(evaluated).items() if key[0] == "honesty"}
    for key, row in rows.items():
        assert (row["margin"] > 0) == (values[key] == 1.0)
        assert (row["answer"] == row["expected"]) == (values[key] == 1.0)
        if row["answer"] != row["expected"]:
            apart = likelihood(row["prompt"], row["expected"]) - likelihood(row["prompt"], row["answer"])
            assert row["margin"] == pytest.approx(apart, abs=2e-3)  # float32 sums of some ten terms
    assert rows


CHOICES = {
    "arguments": [("Q: a?\nA:", " no"), ("Q: a?\nA:", " yes indeed")],
    "filtered_resps": [(-3.0, False), (-10.0, False)],
    "target": 1,
}
CONTEXTS = {
    "arguments": [
        ("The cat sat on the dog, as the cat", " was heavy"),
        ("The cat sat on the dog, as the dog", " was heavy"),
    ],
    "filtered_resps": [(-2.0, False), (-1.5, False)],
    "target": "was heavy",
}


@pytest.mark.parametrize(
    ("sample", "metric", "value", "answer", "expected", "margin"),
    [
        (CHOICES, "acc", 0.0, "no", "yes indeed", -7.0),
        (CHOICES, "acc_norm", 1.0, "yes indeed", "yes indeed", -1.0 + 1.5),
        (CHOICES, "acc_norm", 0.0, "yes indeed", "yes indeed", None),  # counted in another way
        (CHOICES | {"target": "no"}, "acc", 1.0, "no", "no", 7.0),
        (CHOICES | {"target": [0, 1]}, "acc", 1.0, "no", "no | yes indeed", None),
        (CHOICES | {"target": 7}, "acc", 0.0, "no", "7", None),
        (CONTEXTS, "acc", 1.0, "dog was heavy", "was heavy", None),
    ],
)
def test_what_lm_evals_samples_say(sample, metric, value, answer, expected, margin) -> None:
    found = said(sample | {metric: value}, metric)
    assert (found["answer"], found["expected"], found["margin"]) == (answer, expected, margin)


def test_samples_without_choices() -> None:
    written = {"arguments": [("Q", {"until": []})], "filtered_resps": ["an answer"], "target": ["a", "b"]}
    assert said(written, "exact_match") == {
        "prompt": "Q", "expected": "a | b", "answer": "an answer", "margin": None,
    }  # fmt: skip
    rolling = {"arguments": [("a text",)], "filtered_resps": [-3.0], "target": "a text"}
    assert said(rolling, "bits_per_byte") == {
        "prompt": "a text",
        "expected": "",
        "answer": "",
        "margin": None,
    }


# --- between two evaluations -------------------------------------------------------------------------


@pytest.fixture
def two(smoke_grid) -> list[str]:
    """Two evaluations of the smoke grid."""
    return sorted(
        folder.name for folder in (smoke_grid.store / "evaluate").iterdir() if len(folder.name) == 16
    )[:2]


def test_what_changed_is_what_samples_say(smoke_grid, two) -> None:
    found = changed_items(smoke_grid.store, *two)
    assert {part.column.name for part in found}
    for part in found:
        sides = [
            {
                str(line["item"]): line["value"]
                for line in map(
                    json.loads,
                    (smoke_grid.store / "evaluate" / key / "samples.jsonl").read_text().splitlines(),
                )
                if line["column"] == part.column.name
            }
            for key in two
        ]
        assert part.num_items == len(sides[0])
        differing = {item for item in sides[0] if sides[0][item] != sides[1][item]}
        assert {change.item for change in part.changes} == differing
        gains = [abs(change.gain) for change in part.changes]
        assert gains == sorted(gains, reverse=True)
        assert all(change.prompt for change in part.changes)


def test_command_prints_and_writes_a_page(smoke_grid, two, tmp_path, capsys) -> None:
    main(["items", *two, "--store", str(smoke_grid.store), "--out", str(tmp_path), "--show", "1"])
    printed = capsys.readouterr().out
    found = changed_items(smoke_grid.store, *two)
    some = [part for part in found if part.changes]
    assert some, "the grid's cells answer some item differently"
    page = (tmp_path / "items.html").read_text()
    for part in some:
        assert (
            f"{part.column.title}, item {part.changes[0].item}: {part.changes[0].better} is better" in printed
        )
        assert page.count('<div class="item">') >= len(part.changes)
    assert str(tmp_path / "items.html") in printed and "<script" not in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["merge=ties", "merge=dare"],
            "merge=ties selects 2 evaluations; name one, by its seed or its evaluate key",
        ),
        (["--column", "nothing"], "--column=nothing is none of"),
    ],
)
def test_what_cannot_be_shown_is_said(smoke_grid, two, words, message, tmp_path, capsys) -> None:
    chosen = words if "=" in words[0] else [*two, *words]
    with pytest.raises(SystemExit):
        main(["items", *chosen, "--store", str(smoke_grid.store), "--out", str(tmp_path)])
    assert message in capsys.readouterr().err


def test_an_evaluation_without_texts_shows_its_items(evaluated: Path, tmp_path: Path) -> None:
    (tmp_path / FILE).unlink(missing_ok=True)
    assert read_answers(tmp_path) == {}
