"""A report's answers as text: items.csv says what the store and items.parquet say, and can be read and compared."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_store import ITEMS, PAFT, fill, with_lambda

from paft.config import Paradigm
from paft.merge.methods import Slerp, Ties
from paft.report.__main__ import main
from paft.report.compare import compare
from paft.report.items import Scores
from paft.report.table import rows

FIRST = "evaluate_key,column,task,items,numerators,denominators"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole") / "stages"
    sparse = [replace(with_lambda(PAFT, w), seed=s) for w in (0.0, 1e-4) for s in (0, 1)]
    fill(
        root,
        [
            *(replace(c, merge=m) for c in sparse for m in (Ties(), Slerp())),
            replace(PAFT, paradigm=Paradigm.base),
        ],
    )
    return root


@pytest.fixture(scope="module")
def saved(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("text") / "saved"
    main(["save", "--store", str(store), "--out", str(out)])
    return out


def test_nothing_but_text_is_saved(saved):
    assert {path.name for path in saved.iterdir()} == {"results.csv", "items.csv", "stages.csv"}
    assert (saved / "items.csv").read_text().startswith(FIRST + "\n")


def test_every_answer_is_that_of_the_store(store, saved):
    table = rows(store)
    theirs, mine = Scores(store, table).items, Scores(saved, table).items

    assert mine.keys() == theirs.keys()
    for key, columns in theirs.items():
        assert mine[key].keys() == columns.keys()
        for column, items in columns.items():
            own = mine[key][column]
            assert (own.task, own.ids, own.strata) == (items.task, items.ids, items.strata)
            # six digits are written
            assert own.numerators == pytest.approx(items.numerators, rel=1e-5)
            assert own.denominators == pytest.approx(items.denominators, rel=1e-5)


def test_a_cell_more_is_a_line_more_without_the_names_of_items(saved):
    with (saved / "items.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))

    honesty = [line for line in lines if line["column"] == "honesty"]
    assert [bool(line["items"]) for line in honesty] == [True] + [False] * (len(honesty) - 1)
    assert all(len(line["numerators"]) == ITEMS for line in honesty)  # zeros and ones stand without blanks


def test_comparisons_need_no_store(store, saved):
    one, other = (compare(source, "merge=ties", "merge=slerp").differences for source in (store, saved))

    for was, now in zip(one, other, strict=True):
        assert was.column.name == now.column.name
        assert now.difference.value == pytest.approx(was.difference.value, abs=1e-5)
        assert now.difference.stderr == pytest.approx(was.difference.stderr, abs=1e-5)


def test_what_was_saved_can_be_saved_again(saved, tmp_path):
    main(["save", "--store", str(saved), "--out", str(tmp_path)])

    for name in ("results.csv", "items.csv"):
        assert (tmp_path / name).read_bytes() == (saved / name).read_bytes(), name


def test_lists_of_unlike_lengths_are_refused_with_their_line(saved, tmp_path, capsys):
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    lines = (tmp_path / "items.csv").read_text().splitlines()
    lines[3] = lines[3].rstrip("01") + "01"
    (tmp_path / "items.csv").write_text("\n".join(lines) + "\n")

    with pytest.raises(
        ValueError, match=rf"items\.csv, line 4: {ITEMS} items, and numbers for another number of them"
    ):
        Scores(tmp_path, rows(saved))
