"""Callbacks that look into training: they measure it right and leave it as it is."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from paft.callbacks.merge_then_evaluate import MergeThenEvaluate
from paft.callbacks.sparsity import DeltaSparsity
from paft.command.pipeline import context_of
from paft.graph.build import build
from paft.store.store import Store

EVERY_2 = ("callbacks.merge_then_evaluate.every_n_train_steps=2", "callbacks.sparsity.every_n_train_steps=3")


def train_preference(compose, logs: Path, *words: str) -> tuple[Store, Path]:
    """The preference branch alone, trained where everything but it and what follows is finished."""
    config = compose("experiment=smoke", f"logs={logs}", "trainer.progress_bar=false", *words)
    store, cell = Store(config.store), build(config)
    (preference,) = (s for s in cell.walk() if s.name == "preference")
    context = context_of(config, store, cell)
    folder = store.ensure(preference, context.run)
    assert store.complete(cell) is ("callbacks=none" not in words)
    return store, folder


@pytest.fixture(scope="module")
def watched(compose, smoke_grid, tmp_path_factory) -> Path:
    return train_preference(compose, _without_preference(smoke_grid, tmp_path_factory), *EVERY_2)[1]


@pytest.fixture(scope="module")
def unwatched(compose, smoke_grid, tmp_path_factory) -> Path:
    return train_preference(compose, _without_preference(smoke_grid, tmp_path_factory), "callbacks=none")[1]


def _without_preference(smoke_grid, tmp_path_factory) -> Path:
    logs = tmp_path_factory.mktemp("callbacks") / "logs"
    for stage in ("data", "sft"):
        shutil.copytree(smoke_grid.store / stage, logs / "stages" / stage)
    return logs


def rows_with(folder: Path, column: str) -> pd.Series:
    """Values of the column by step, where there is one."""
    return pd.read_csv(folder / "history.csv").set_index("step")[column].dropna()


@pytest.mark.slow
def test_merged_scores_are_in_the_history_at_their_steps(watched):
    scores = rows_with(watched, "merged/mmlu_dev_bits")

    assert list(scores.index) == [1, 3, 5, 7]
    assert scores.nunique() == 4  # the model moves
    assert list(rows_with(watched, "merged/average").index) == [1, 3, 5, 7]


@pytest.mark.slow
def test_last_merged_score_is_the_cells_own_result(watched):
    (evaluation,) = (watched.parents[1] / "evaluate").glob("*/results.json")
    tasks = json.loads(evaluation.read_text())["tasks"]

    for column, task in tasks.items():
        assert rows_with(watched, f"merged/{column}")[7] == pytest.approx(task["score"], abs=1e-12)


@pytest.mark.slow
def test_watching_leaves_the_adapter_bitwise_as_it_was(watched, unwatched):
    assert watched.name == unwatched.name  # callbacks are in no key, so they must not matter
    ours, theirs = (load_file(f / "adapter" / "adapter_model.safetensors") for f in (watched, unwatched))

    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
def test_nothing_of_the_watching_is_left_behind(watched):
    finished = {"adapter", "history.csv", "merged_scores.csv", "sparsity.json", "stage.json"}
    assert {p.name for p in watched.iterdir()} == finished


@pytest.mark.slow
def test_curve_of_the_merged_model_is_the_history_with_errors_and_keys(watched, unwatched):
    curve = pd.read_csv(watched / "merged_scores.csv")
    (evaluation,) = (watched.parents[1] / "evaluate").glob("*/results.json")
    tasks = json.loads(evaluation.read_text())["tasks"]

    assert sorted(set(curve["step"])) == [2, 4, 6, 8] and set(curve["column"]) == set(tasks)
    for column, rows in curve.groupby("column"):
        logged = rows_with(watched, f"merged/{column}")
        assert rows["score"].tolist() == pytest.approx(logged.tolist(), abs=1e-12)
        assert rows["stderr"].iloc[-1] == pytest.approx(tasks[column]["stderr"])
    assert set(curve["evaluate_key"]) == {evaluation.parent.name}
    assert not (unwatched / "merged_scores.csv").exists()


def test_a_resumed_run_keeps_the_curve_up_to_where_it_goes_on(tmp_path):
    callback = MergeThenEvaluate(every_n_train_steps=2)
    callback.context, callback.out = "bound", tmp_path
    kept = [["2", "a", "0.5", "", "True", "m", "e"], ["4", "a", "0.6", "0.1", "True", "m", "e"]]
    callback._write([*kept, ["6", "a", "0.7", "", "True", "m", "e"]])

    callback.on_train_start(SimpleNamespace(global_step=4, is_global_zero=True), None)

    assert callback._read() == kept


@pytest.mark.slow
def test_delta_sparsity_against_plain_torch(watched):
    weights = load_file(watched / "adapter" / "adapter_model.safetensors")
    config = json.loads((watched / "adapter" / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / config["r"]
    shares = []
    for name, a in weights.items():
        if "lora_A" in name:
            delta = scale * weights[name.replace("lora_A", "lora_B")] @ a
            shares.append((delta.abs() < 1e-5).double().mean().item())

    logged = rows_with(watched, "train/sparsity")

    # logged with the step that was just made, counted from 0: after steps 3, 6 and the last, 8
    assert list(logged.index) == [2, 5, 7]
    # one element of the smallest layer more or less is 5e-4 / 14
    assert logged[7] == pytest.approx(sum(shares) / len(shares), abs=2e-5)
    assert logged.nunique() > 1


@pytest.mark.parametrize("every", [0, -1])
def test_every_must_be_positive(every):
    with pytest.raises(ValueError, match=rf"merge_then_evaluate\.every_n_train_steps .* got {every}"):
        MergeThenEvaluate(every_n_train_steps=every)
    with pytest.raises(ValueError, match=rf"sparsity\.every_n_train_steps must be positive, got {every}"):
        DeltaSparsity(every_n_train_steps=every)


def test_unbound_callback_has_nothing_to_merge():
    assert MergeThenEvaluate().merge is None


@pytest.mark.parametrize(("paradigm", "expected"), [("parallel", True), ("sft", False), ("base", False)])
def test_merges_only_where_a_finished_partner_is(compose, smoke_grid, tmp_path, paradigm, expected):
    config = compose("experiment=smoke", f"paradigm={paradigm}", f"store={smoke_grid.store}")
    cell = build(config)
    (sft,) = (s for s in build(compose("experiment=smoke")).walk() if s.name == "sft")
    callback = MergeThenEvaluate()

    callback.bind(context_of(config, Store(config.store), cell), sft, tmp_path, {})
    assert (callback.merge is not None) is expected
    callback.bind(context_of(config, Store(tmp_path / "empty"), cell), sft, tmp_path, {})
    assert callback.merge is None
