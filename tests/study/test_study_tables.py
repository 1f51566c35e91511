"""From a store of the study's cells to its committed files, and from those alone to its tables and figure."""

import shlex
import shutil
from pathlib import Path

import pytest
from study2_store import BLOCKS, ROOT, STUDY2, add, words_of

from paft.report.__main__ import main as report
from paft.report.questions import read_questions
from paft.report.saved import read_csv
from paft.report.table import rows
from paft.study.__main__ import main
from paft.study.analysis import CONFIRMATORY

DOCS = ROOT / "docs"
NUMBERS = {"main": 5 * 10 + 2 + 3 * 6, "merges": 30 + 16 + 8 + 4, "paradigms": 6 + 3 + 3, "objectives": 12,
           "tuned": 5 * 4 * 2, "full": 3 * 4}  # fmt: skip
"""Cells of each block, a seed a cell."""


def saved(store: Path, out: Path) -> Path:
    """The folder as it is committed: the two files and the questions."""
    shutil.copytree(STUDY2 / "questions", out / "questions")
    report(["--store", str(store), "--out", str(out), "save"])
    return out


@pytest.fixture(scope="module")
def main_block(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The confirmatory block with two of its seeds, saved."""
    store = tmp_path_factory.mktemp("study2") / "stages"
    add(store, words_of("main", "seed=0,1"))
    return saved(store, tmp_path_factory.mktemp("committed") / "study2")


@pytest.fixture(scope="module")
def analysed(main_block: Path) -> Path:
    main(["analyse", "--out", str(main_block), "--first", str(DOCS / "study")])
    return main_block


def test_every_block_has_a_number_of_cells_here():
    assert {block: len(words_of(block)) for block in BLOCKS} == NUMBERS


def test_no_text_is_needed_but_two_files_and_the_questions(main_block):
    kept = {path.name for path in main_block.iterdir()} - {"stages.csv"}
    assert {"results.csv", "items.csv", "questions"} <= kept
    assert not [path for path in main_block.rglob("*") if path.suffix in (".parquet", ".jsonl")]


@pytest.mark.parametrize("family", CONFIRMATORY)
def test_each_hypothesis_is_asked_of_four_ways_and_answered(analysed, family):
    found = read_csv(analysed / f"{family}.csv")

    assert [row["question"] for row in found] == [
        q.text for q in read_questions(STUDY2 / f"questions/{family}.csv")
    ]
    assert len(found) == 4 and all(row["column"] == "average" and row["num_seeds"] == 2 for row in found)
    assert all(
        row["low"] <= row["difference"] <= row["high"] and row["p"] <= row["p_corrected"] for row in found
    )


def test_a_difference_is_that_of_the_cells_means(analysed):
    """Of the question about random dropping at equal norm."""
    table = [r for r in read_csv(analysed / "results.csv") if r["norm"] == "preference" and r["lambda"] == 0]
    by_random = {
        by: [
            r["average"]
            for r in table
            if r["merge.prune_by"] == by and bool(r["merge.prune_sft"]) == bool(share)
        ]
        for by, share in (("random", 0.9), (None, 0))
    }
    means = {by: 100 * sum(values) / len(values) for by, values in by_random.items()}
    (asked,) = [r for r in read_csv(analysed / "equal.csv") if r["question"] == "dropped at random"]

    assert asked["difference"] == pytest.approx(means["random"] - means[None], abs=1e-4)


def test_the_mixed_model_has_each_confirmatory_contrast_once(analysed):
    found = read_csv(analysed / "mixed.csv")
    asked = [(name, row["question"]) for name in CONFIRMATORY for row in read_csv(analysed / f"{name}.csv")]
    assert [(row["family"], row["question"]) for row in found] == asked
    for name in CONFIRMATORY:
        theirs = [row["difference"] for row in found if row["family"] == name]
        assert theirs == pytest.approx(
            [r["difference"] for r in read_csv(analysed / f"{name}.csv")], abs=1e-4
        )


def test_what_predicts_the_outcome_is_asked_at_each_norm(analysed):
    found = [row for row in read_csv(analysed / "predictors.csv") if row["measure"] == "sign_conflict"]
    assert {row["norm"] for row in found} == {"own norm", "SFT at the preference norm"}
    assert all(-1 <= row["rho"] <= 1 and row["num_cells"] == 5 and row["num_seeds"] == 2 for row in found)


def test_the_figure_and_the_claims_are_made(analysed):
    assert (analysed / "effects.png").read_bytes().startswith(b"\x89PNG")
    claims = read_csv(analysed / "claims_beside.csv")
    assert claims and {"claim", "second study", "first study, GSM8K and HH"} <= claims[0].keys()


def test_a_folder_without_its_items_is_refused_with_a_sentence(main_block, tmp_path, capsys):
    shutil.copy(main_block / "results.csv", tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["analyse", "--out", str(tmp_path), "--first", str(DOCS / "study")])
    assert stopped.value.code == 2
    assert "has results.csv and no items.parquet or items.csv" in capsys.readouterr().err


@pytest.mark.exhaustive
def test_every_question_is_answered_once_all_blocks_have_run(tmp_path, capsys, caplog):
    store = tmp_path / "stages"
    for block in BLOCKS:
        add(store, words_of(block, "seed=0,1") if block == "main" else words_of(block, "seed=0"))
    main(["tuned", "--store", str(store), "--seeds", "0"])
    commands = [shlex.split(line)[1:] for line in capsys.readouterr().out.splitlines()]
    assert len(commands) == 5
    add(store, commands)
    folder = saved(store, tmp_path / "study2")

    main(["analyse", "--out", str(folder), "--first", str(DOCS / "study")])

    assert caplog.messages == []
    for file in (folder / "questions").glob("*.csv"):
        answered = read_csv(folder / file.name)
        assert answered and not [row["question"] for row in answered if row["why"]], file.stem


@pytest.fixture
def dense_trials() -> list[list[str]]:
    """Of the tuned block with one seed: the dense delta, and pruned by magnitude and at random."""
    return [words for words in words_of("tuned", "seed=0") if not any(w.startswith("lambda=") for w in words)]


def test_each_delta_s_best_weights_are_scored_on_the_test_items(dense_trials, tmp_path, capsys):
    store = tmp_path / "stages"
    add(store, dense_trials)

    main(["tuned", "--store", str(store), "--seeds", "0", "1"])

    commands = [shlex.split(line)[1:] for line in capsys.readouterr().out.splitlines()]
    table = [row for row in rows(store) if row.merged]
    deltas = list(dict.fromkeys((r.get("merge.prune_by"), r.get("merge.prune_sft")) for r in table))
    assert [len(deltas), len(commands), len(table)] == [3, 6, 12]
    for delta, two in zip(deltas, (commands[0:2], commands[2:4], commands[4:6]), strict=True):
        own = [r for r in table if (r.get("merge.prune_by"), r.get("merge.prune_sft")) == delta]
        best = max(own, key=lambda r: r["average"])
        tried = [w for w in shlex.split(best["command"])[2:] if not w.startswith("seed=")]
        for seed, words in enumerate(two):
            assert words == [*tried, "evaluate.split=test", f"seed={seed}", "hydra.mode=RUN"]


def test_unlike_budgets_are_refused_with_a_sentence(dense_trials, tmp_path, capsys):
    store = tmp_path / "stages"
    add(store, dense_trials[:-1])
    with pytest.raises(SystemExit) as stopped:
        main(["tuned", "--store", str(store)])
    assert stopped.value.code == 2
    assert "deltas have unlike numbers of trials" in capsys.readouterr().err
