"""A search with Optuna over a grid's store: it trains nothing, goes by validation items, and tells what is best."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, train
from omegaconf import OmegaConf

from paft.command.search import refuse_direction, refuse_training
from paft.graph.build import build

pytestmark = pytest.mark.slow
pytest.importorskip("optuna", reason="the search needs pip install 'paft[search]'")

STUDY = (ROOT / "docs/study.md").read_text(encoding="utf-8")
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
    (command,) = re.findall(r"python \S*train.py (.* evaluate.split=test) hydra.mode=RUN", said)
    scores = [json.loads(p.read_text()) for p in (logs / "stages/evaluate").glob("*/results.json")]
    assert float(best) == pytest.approx(
        max(r["average"] for r in scores if r["split"] == "validation"), abs=1e-4
    )
    config = compose(*command.split())
    assert build(config).config.evaluate.split == "test"
    assert 0.1 <= config.merge.density <= 1
    assert config.merge.weights == [config.merge.sft_weight, config.merge.preference_weight]


def test_the_command_that_tests_the_best_runs_that_one_cell(searched, run_printed):
    logs, said = searched
    (command,) = re.findall(r"score it on the test split: (.*)", said)
    before = made(logs / "stages", "evaluate")

    done = run_printed(command, cwd=logs.parent)

    assert done.returncode == 0, done.stderr
    (key,) = made(logs / "stages", "evaluate") - before
    results = json.loads((logs / "stages/evaluate" / key / "results.json").read_text())
    assert results["split"] == "test"
    assert "best of the search" not in done.stdout and "Launching" not in done.stdout
    assert done.stdout.count("evaluate   ") == 1


def test_a_search_given_again_goes_on_where_it_was(searched):
    logs, _ = searched
    before = made(logs / "stages", "evaluate")

    done = train(*SEARCH, "lambda=1e-4,1e-3", "hydra.sweeper.n_trials=4", f"logs={logs}", cwd=logs.parent)

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("evaluate   ") == 4
    assert len(made(logs / "stages", "evaluate") - before) == 1


def test_a_study_in_a_file_gets_more_trials_without_labels(tmp_path):
    optuna = pytest.importorskip("optuna")
    held_out = ("data.sft.held_out=16", "data.preference.held_out=16")
    fast = [word for word in LIKE_SMOKE if not word.startswith("evaluate=")]
    done = train(*fast, *held_out, "evaluate=held_out", "logs=logs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    storage = f"sqlite:///{tmp_path / 'weights.db'}"
    study = ("study_name=weights", f"storage={storage}", "n_trials=1", "sampler.seed=null")
    words = ("experiment=search", *fast, *held_out, "logs=logs", *(f"hydra.sweeper.{word}" for word in study))

    for trials in (1, 2):
        done = train(*words, cwd=tmp_path)

        assert done.returncode == 0, done.stderr
        kept = optuna.load_study("weights", storage).trials
        assert [trial.state.name for trial in kept] == ["COMPLETE"] * trials
    assert kept[0].params != kept[1].params


def test_a_trial_that_would_train_is_refused(compose, smoke_grid):
    words = ("experiment=smoke", "no_training=true", f"store={smoke_grid.store}")
    known = compose(*words, "lambda=1e-4", "merge=linear")
    refuse_training(known, build(known), "python train.py {}".format)
    unknown = compose(*words, "lambda=3e-4")
    said = (
        r"has no sft \w+ \(seed 42\) for lambda=0.0003; train it first, with this cell: python train.py no_tr"
    )
    with pytest.raises(ValueError, match=said):
        refuse_training(unknown, build(unknown), "python train.py {}".format)


def test_the_command_that_trains_what_a_search_lacks_trains_it(tmp_path, run_printed):
    words = ("experiment=[study/search,smoke]", "trainer.progress_bar=false", f"logs={tmp_path / 'my logs'}")
    refused = train(*words, cwd=tmp_path)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    (command,) = re.findall(r"with this cell: (.*)", refused.stderr)
    assert "'experiment=[study/search,smoke]'" in command and command.endswith("hydra.mode=RUN")

    done = run_printed(command, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    for stage in ("sft", "preference", "evaluate"):
        assert len(made(tmp_path / "my logs/stages", stage)) == 1


PRINTED_SEARCH = re.findall(r"^    (python train.py -m hydra/sweeper=optuna .*?)(?:  +#.*)?$", STUDY, re.M)


def test_a_search_of_ones_own_goes_as_the_study_says(tmp_path, run_printed):
    (command,) = PRINTED_SEARCH
    small = f" experiment=smoke trainer.progress_bar=false hydra.sweeper.n_trials=2 logs={tmp_path / 'logs'}"

    planned = run_printed(f"{command}{small} plan=true", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert "a search of 2 trials; each is a cell like this one with other values" in planned.stdout
    done = run_printed(command + small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(made(tmp_path / "logs/stages", "evaluate")) == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("lambda=interval(1e-5,1e-3)",), "hydra.sweeper.direction must be maximize, got minimize: "),
        (
            ("hydra.sweeper.params={lambda: interval(1e-5,1e-3)}",),
            "what a search varies is given as its own key: 'lambda=interval(1e-5,1e-3)'",
        ),
    ],
)
def test_a_search_that_cannot_be_meant_says_what_to_write(tmp_path, words, says):
    done = train("-m", "hydra/sweeper=optuna", *words, "plan=true", cwd=tmp_path)

    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert says in done.stderr


def test_a_search_of_the_worst_is_refused_by_its_direction():
    for direction in ("minimize", ["maximize", "minimize"], None):
        with pytest.raises(ValueError, match="direction must be maximize"):
            refuse_direction(OmegaConf.create({"direction": direction}))
    refuse_direction(OmegaConf.create({"direction": "maximize"}))


def test_a_search_names_the_key_that_its_merge_has_not(tmp_path):
    done = train("experiment=study/search", "merge=linear", "plan=true", cwd=tmp_path)

    assert done.returncode == 2
    said = "the search varies merge.density, which merge=linear has not; it is a setting of merge=ties,"
    assert said in done.stderr
