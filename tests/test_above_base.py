"""Columns that count the items on which a model does better than its base, computed anew from both models' answers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import train

from paft.config import EvaluateConfig, Rows, TaskConfig
from paft.evaluate.above_base import compared
from paft.evaluate.results import Score

PLAIN = TaskConfig("paft_preference", "margin,none", in_average=False, rows=Rows.preference)
EVALUATE = EvaluateConfig(name="pairs", tasks={"reward": replace(PLAIN, above_base=True), "margin": PLAIN})


def samples(values: list[float]) -> list[dict[str, Any]]:
    items = [f"{number}" for number in range(len(values))]
    pairs = zip(items, values, strict=True)
    return [
        {"column": c, "item": item, "value": value} for item, value in pairs for c in ("reward", "margin")
    ]


def scored(values: list[float], base: list[float] | None, tmp_path: Path, *, higher: bool = True) -> Score:
    mean = sum(values) / len(values)
    plain = Score("paft_preference", "margin,none", mean, 0.1, higher, False, 0, "1", len(values))
    folder = None
    if base is not None:
        folder = tmp_path
        (folder / "samples.jsonl").write_text("".join(json.dumps(s) + "\n" for s in samples(base)))
    found, kept = compared({"reward": plain, "margin": plain}, samples(values), EVALUATE, folder)
    assert found["margin"] == plain
    assert [s["value"] for s in kept if s["column"] == "margin"] == values
    better = sum(s["value"] for s in kept if s["column"] == "reward") / len(values)
    assert found["reward"].score == pytest.approx(better)
    return found["reward"]


def test_an_item_counts_one_above_half_at_and_nothing_below_the_base(tmp_path):
    found = scored([1.0, -2.0, 0.5, -3.0], [0.5, -2.5, 0.5, 1.0], tmp_path)

    assert found.score == (1 + 1 + 0.5 + 0) / 4
    assert found.stderr == pytest.approx((sum((v - found.score) ** 2 for v in (1, 1, 0.5, 0)) / 3 / 4) ** 0.5)
    assert found.metric == "margin,none above base"


def test_where_lower_is_better_less_counts(tmp_path):
    assert scored([1.0, -2.0, 0.5], [0.5, -2.5, 1.0], tmp_path, higher=False).score == pytest.approx(1 / 3)


def test_the_base_is_as_good_as_itself(tmp_path):
    assert scored([1.0, -2.0, 0.5], None, tmp_path).score == 0.5


def test_a_column_without_the_plain_one_is_refused():
    with pytest.raises(
        ValueError, match=r"evaluate\.tasks\.reward\.above_base compares items of another column"
    ):
        EvaluateConfig(name="pairs", tasks={"reward": EVALUATE.tasks["reward"]})


@pytest.mark.slow
def test_a_cell_s_column_is_made_of_its_own_and_the_base_s_answers(tmp_path):
    better = (
        "+evaluate.tasks.better={task: paft_honesty, metric: 'acc,none', above_base: true, in_average: false}"
    )
    words = ("experiment=smoke", "paradigm=preference", better, "logger=csv", f"logs={tmp_path / 'logs'}")
    done = train(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr

    folders = [path.parent for path in tmp_path.glob("logs/stages/evaluate/*/results.json")]
    base, cell = sorted(
        folders, key=lambda f: len(json.loads((f / "stage.json").read_text())["identity"]["inputs"])
    )
    answers = [
        {
            s["item"]: s["value"]
            for s in map(json.loads, (f / "samples.jsonl").read_text().splitlines())
            if s["column"] == "honesty"
        }
        for f in (base, cell)
    ]
    ways = [
        0.5 + 0.5 * ((answers[1][item] > was) - (answers[1][item] < was)) for item, was in answers[0].items()
    ]
    tasks = json.loads((cell / "results.json").read_text())["tasks"]
    assert len(ways) > 1 and tasks["better"]["score"] == pytest.approx(sum(ways) / len(ways))
    assert json.loads((base / "results.json").read_text())["tasks"]["better"]["score"] == 0.5
