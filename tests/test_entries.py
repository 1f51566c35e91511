"""A merge method, an objective, a task and a base, each added by its one entry, are everywhere by themselves."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENTRIES = {
    "src/paft/merge/methods/larger.py": '''
"""The larger of two values."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paft.delta.rows import Array
from paft.merge.method import Method


@dataclass
class Larger(Method, name="larger", title="Larger Value", source="a paper of ours"):
    """Of either delta's values the larger one."""

    factor: float = 1.0
    """Factor on the merged delta."""

    def merge_deltas(self, deltas: Sequence[Array], base: Array) -> Array:
        first, second = deltas
        return np.float32(self.factor) * np.where(abs(first) > abs(second), first, second)
''',
    "src/paft/objectives/margin.py": '''
"""A margin between the answers."""

from dataclasses import dataclass
from typing import Any

from paft.objectives.objective import Objective, PairLogps


@dataclass
class Margin(Objective, name="margin", title="Margin", source="another paper"):
    """The chosen answer's log-probability is to be above the other's by a margin."""

    target: float = 50.0
    """The margin above which nothing is lost, in nats."""

    def losses(self, logps: PairLogps) -> Any:
        return (self.target - (logps.chosen - logps.rejected)).relu()
''',
    "src/paft/evaluate/tasks/guess.yaml": """
task: guess
custom_dataset: !function docs.honesty
output_type: multiple_choice
test_split: test
doc_to_text: "{{prompt}}"
doc_to_choice: answers
doc_to_target: 1
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
""",
    "conf/model/smaller.yaml": """
defaults: [tiny, _self_]
name: smaller
hidden_size: 32
""",
}
WORDS = (
    "experiment=smoke",
    "model=smaller",
    "+evaluate.tasks.guess.task=guess",
    "preference.max_steps=3",
    "sft.max_steps=3",
    "trainer.progress_bar=false",
    "-m",
    "preference=margin,dpo",
    "merge=larger,ties",
)
FIGURES = """
import json, sys
from pathlib import Path
from matplotlib.text import Text
from paft.report.pictures import figures
from paft.report.table import rows
store = Path(sys.argv[1])
print(json.dumps({name: [t.get_text() for t in f.findobj(Text)] for name, f in figures(store, rows(store))}))
"""


class House:
    """A copy of the sources with the four entries, and a grid that was run with them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.logs = folder, folder / "logs"
        for name in ("src/paft", "src/hydra_plugins", "conf"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "train.py", folder)
        for name, text in ENTRIES.items():
            (folder / name).write_text(text.lstrip())
        self.grid = self.run("train.py", *WORDS, f"logs={self.logs}")

    def run(self, *words: str) -> str:
        """What a command prints, on both streams."""
        env = os.environ | {"PYTHONPATH": str(self.folder / "src"), "COLUMNS": "200"}
        command = [sys.executable, *words]
        done = subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> House:
    return House(tmp_path_factory.mktemp("house"))


pytestmark = pytest.mark.slow


def test_grid_has_a_row_for_each_cell_with_its_options(house):
    with (house.logs / "report/results.csv").open() as file:
        rows = list(csv.DictReader(file))

    cells = {(r["preference"], r["merge"]) for r in rows}
    assert cells == {(p, m) for p in ("margin", "dpo") for m in ("larger", "ties")}
    assert {r["base"] for r in rows} == {"smaller"}
    assert {r["merge.factor"] for r in rows if r["merge"] == "larger"} == {"1.0"}
    assert {r["preference.target"] for r in rows if r["preference"] == "margin"} == {"50.0"}
    assert all(0 <= float(r["guess"]) <= 1 for r in rows)


def test_terminal_and_page_write_their_titles(house):
    page = (house.logs / "report/index.html").read_text()
    for text in (house.grid, page):
        assert "Larger Value" in text and "smaller" in text and "guess" in text
    assert "+Margin" in page


def test_pictures_name_them(house):
    texts = json.loads(house.run("-c", FIGURES, str(house.logs / "stages")).splitlines()[-1])
    every = [text for found in texts.values() for text in found]
    assert any("Larger Value" in text for text in every)
    assert any("Margin" in text for text in every)
    assert any("guess" in text.lower() for text in every)
    drawn = {path.stem.partition("-")[2] for path in (house.logs / "report").glob("*.png")}
    assert drawn >= texts.keys()


def test_help_explains_them(house):
    general = house.run("train.py", "--help")
    assert "larger" in general and "margin" in general and "smaller" in general
    assert "Factor on the merged delta" in house.run("train.py", "--help", "merge=larger")
    assert "in nats" in house.run("train.py", "--help", "preference=margin")


def test_plan_and_standalone_merge_know_them(house):
    assert "hit" in house.run("train.py", *WORDS, f"logs={house.logs}", "plan=true")
    assert "--factor" in house.run("-m", "paft.merge", "--method", "larger", "--help")
