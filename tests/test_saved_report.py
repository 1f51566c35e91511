"""A report without its store: what it says of scores is made again from results.csv and items.parquet alone."""

import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from synthetic_store import ITEMS, PAFT, fill, with_lambda

from paft.config import Paradigm
from paft.merge.methods import DareTies, Ties
from paft.report.__main__ import main
from paft.report.build import build_report
from paft.report.compare import compare
from paft.report.items import Scores
from paft.report.questions import answers, read_questions
from paft.report.table import rows

QUESTIONS = (
    "topic,question,both,left,right,columns\n"
    "a,TIES against DARE,,merge=ties,merge=dare,average honesty bits\n"
    "b,sequential,lambda=1e-4,merge=ties,paradigm=sequential,average sft_hoyer\n"
)
MADE = ("results.csv", "cells.csv", "claims.csv")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole") / "stages"
    sparse = [replace(with_lambda(PAFT, w), seed=s) for w in (0.0, 1e-4) for s in (0, 1, 2)]
    cells = [
        replace(c, merge=m(seed=c.seed) if m is DareTies else m()) for c in sparse for m in (Ties, DareTies)
    ]
    cells += [replace(c, paradigm=Paradigm.sequential) for c in sparse]
    fill(root, [*cells, replace(PAFT, paradigm=Paradigm.base)])
    return root


@pytest.fixture(scope="module")
def saved(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nothing but the two files."""
    out, alone = (tmp_path_factory.mktemp(name) for name in ("report", "saved"))
    build_report(store, out)
    for name in ("results.csv", "items.parquet"):
        shutil.copy(out / name, alone / name)
    return alone


def test_every_item_of_every_evaluation_is_in_the_file(store, saved):
    table = pd.read_parquet(saved / "items.parquet")

    assert list(table) == [
        "evaluate_key",
        "family",
        "seed",
        "column",
        "task",
        "item",
        "numerator",
        "denominator",
    ]
    every = rows(store)
    assert len(table) == len(every) * 4 * ITEMS
    one = every[0]
    own = table[(table.evaluate_key == one["evaluate_key"]) & (table.column == "honesty")]
    assert own.numerator.mean() == pytest.approx(one["honesty"]) and set(own.denominator) == {1.0}
    assert (own.family.iloc[0], own.seed.iloc[0]) == (one["family"], one["seed"])
    bits = table[(table.evaluate_key == one["evaluate_key"]) & (table.column == "bits")]
    assert bits.numerator.sum() / bits.denominator.sum() == pytest.approx(one["bits"])


def test_rows_come_back_as_they_were(store, saved):
    before, after = rows(store), rows(saved)

    names = {name for row in before for name in row}
    errors = {f"{column}_stderr" for column in ("tool_call", "honesty", "mmlu_dev", "bits")}
    for was, now in zip(before, after, strict=True):
        for name in names - errors:
            assert (name, now[name]) == (name, was.get(name))
            assert type(now[name]) is type(was.get(name))


def test_comparisons_and_answers_are_redone_without_the_store(store, saved, tmp_path):
    asked = tmp_path / "questions.csv"
    asked.write_text(QUESTIONS)

    one, other = (compare(source, "merge=ties", "merge=dare") for source in (store, saved))
    answered, again = (answers(source, read_questions(asked)) for source in (store, saved))

    assert other.differences == one.differences and all(d.difference.stderr for d in other.differences)
    assert [p.differences for p in other.pairs] == [p.differences for p in one.pairs]
    assert again == answered and not any(row["why"] for row in again)


def test_the_report_is_redone_without_the_store_and_leaves_what_it_cannot_make(store, saved, tmp_path):
    build_report(store, tmp_path / "first")
    shutil.copytree(saved, tmp_path / "second")
    (tmp_path / "second/stages.csv").write_text("kept\n")

    build_report(tmp_path / "second", tmp_path / "second")

    for name in (*MADE, "items.parquet"):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "first" / name).read_bytes(), name
    assert (tmp_path / "second/stages.csv").read_text() == "kept\n"
    pictures = {p.name for p in (tmp_path / "second").glob("*.png")}
    assert {"1-lambda_by_merge.png", "1-pareto.png", "1-scores_by_method.png"} <= pictures


def test_commands_take_it_in_place_of_a_store(saved, capsys):
    main(["compare", "merge=ties", "merge=dare", "--store", str(saved)])

    assert "paired, over items and seeds" in capsys.readouterr().out


def test_results_without_items_are_no_store(saved, tmp_path, capsys):
    shutil.copy(saved / "results.csv", tmp_path / "results.csv")

    with pytest.raises(SystemExit):
        main(["compare", "merge=ties", "merge=dare", "--store", str(tmp_path)])

    assert "has results.csv and no items.parquet" in capsys.readouterr().err


def test_one_seed_has_one_error_in_both_tables(tmp_path):
    fill(tmp_path / "stages", [PAFT])

    build_report(tmp_path / "stages", tmp_path)

    results, cells = (pd.read_csv(tmp_path / name) for name in ("results.csv", "cells.csv"))
    for column in ("tool_call", "honesty", "mmlu_dev", "bits"):
        assert results[f"{column}_stderr"].tolist() == cells[f"{column}_stderr"].tolist()
    share = float(cells["honesty"].iloc[0])
    assert cells["honesty_stderr"].iloc[0] == pytest.approx((share * (1 - share) / (ITEMS - 1)) ** 0.5)
    assert Scores(tmp_path / "stages", rows(tmp_path / "stages")).items
