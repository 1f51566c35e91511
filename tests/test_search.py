"""A search with Optuna over a grid's store: it trains nothing, goes by validation items, and tells what is best."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from conftest import train

from paft.command.search import refuse_training
from paft.graph.build import build

pytestmark = pytest.mark.slow
pytest.importorskip("optuna", reason="the search needs pip install 'paft[search]'")

# the smoke experiment by hand: the search is an experiment itself
STEPS = ("lr=1e-2", "max_steps=8", "global_batch_size=8")
ROWS = ("num_rows=64", "max_length=512", "max_prompt_length=448")
LIKE_SMOKE = (
    "model=tiny",
    "evaluate=smoke",
    "logger=csv",
    "trainer.progress_bar=false",
    *(f"{branch}.{setting}" for branch in ("sft", "preference") for setting in STEPS),
    *(f"data.{branch}.{setting}" for branch in ("sft", "preference") for setting in ROWS),
)
SEARCH = ("experiment=study/search", *LIKE_SMOKE, "hydra.sweeper.n_trials=3")


@pytest.fixture(scope="module")
def searched(smoke_grid, tmp_path_factory) -> tuple[Path, str]:
    """The logs of a search of three trials in a copy of the grid's store, and what it said."""
    logs = tmp_path_factory.mktemp("search") / "logs"
    shutil.copytree(smoke_grid.store, logs / "stages")
    done = train(*SEARCH, "lambda=1e-4,1e-3", f"logs={logs}", cwd=logs.parent)
    assert done.returncode == 0, done.stderr
    return logs, done.stdout + done.stderr


def test_search_trains_nothing(searched, smoke_grid):
    logs, _ = searched
    for stage in ("data", "sft", "reference", "preference"):
        assert made(logs / "stages", stage) == made(smoke_grid.store, stage), stage


def made(store: Path, stage: str) -> set[str]:
    return {p.parent.name for p in (store / stage).glob("*/stage.json")}


def test_every_trial_is_scored_by_validation_items(searched, smoke_grid):
    logs, _ = searched
    results = {
        p.parent.name: json.loads(p.read_text()) for p in (logs / "stages/evaluate").glob("*/results.json")
    }
    new = [r for key, r in results.items() if not (smoke_grid.store / "evaluate" / key).exists()]
    assert [r["split"] for r in new] == ["validation"] * 3
    table = pd.read_csv(logs / "report" / "results.csv")
    assert set(table["evaluate"]) == {"smoke", "smoke (validation)"}


def test_the_best_is_told_with_the_command_that_tests_it(searched, compose):
    logs, said = searched
    (best,) = re.findall(r"best of the search: (\d\.\d+)", said)
    (command,) = re.findall(r"python train.py (.* evaluate.split=test)", said)
    scores = [json.loads(p.read_text()) for p in (logs / "stages/evaluate").glob("*/results.json")]
    assert float(best) == pytest.approx(
        max(r["average"] for r in scores if r["split"] == "validation"), abs=1e-4
    )
    config = compose(*command.split())
    assert build(config).config.evaluate.split == "test"
    assert 0.1 <= config.merge.density <= 1
    assert config.merge.weights == [config.merge.sft_weight, config.merge.preference_weight]


def test_a_trial_that_would_train_is_refused(compose, smoke_grid):
    words = ("experiment=smoke", "no_training=true", f"store={smoke_grid.store}")
    known = compose(*words, "lambda=1e-4", "merge=linear")
    refuse_training(known, build(known))
    unknown = compose(*words, "lambda=3e-4")
    with pytest.raises(ValueError, match=r"has no sft \w+ \(seed 42\) for lambda=0.0003; train it first"):
        refuse_training(unknown, build(unknown))
