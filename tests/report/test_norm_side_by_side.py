"""Merges at own and at equal norm: a column, a selector, side by side in pictures, and the missing command."""

import csv
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_store import PAFT, fill, with_lambda

from paft.config import Norm, Paradigm
from paft.files.jsonfile import read_object, write_json
from paft.merge.methods import Linear, Ties
from paft.report.build import Report, build_report
from paft.report.norms import one_sided
from paft.report.pictures import pictures
from paft.report.row import Row
from paft.report.saved import read_csv
from paft.report.score_plots import scores_by_lambda
from paft.report.selection import select
from paft.report.study_plots import heat_map
from paft.report.table import rows
from paft.report.tables import cells_table
from paft.report.terminal import print_table

LAMBDAS = (0.0, 1e-4)
GRID = [
    replace(with_lambda(PAFT, weight), merge=method(norm=norm))
    for norm in (Norm.own, Norm.branches)
    for weight in LAMBDAS
    for method in (Linear, Ties)
]
BASE = replace(PAFT, paradigm=Paradigm.base)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("norms") / "stages"
    fill(root, [*GRID, BASE])
    return root


@pytest.fixture
def one_side(tmp_path):
    """The grid at own norm, with the commands that made it."""
    words = [f"python train.py data=demo lambda={w} merge={m}" for w in LAMBDAS for m in ("linear", "ties")]
    for target, command in zip(fill(tmp_path, [*GRID[:4], BASE]), words, strict=False):
        file = tmp_path / "evaluate" / target.key / "stage.json"
        record = read_object(file)
        write_json(file, record | {"run": record["run"] | {"command": command}})
    return rows(tmp_path)


def test_norm_is_a_column_and_a_selector(store, tmp_path):
    build_report(store, tmp_path)
    with (tmp_path / "results.csv").open(newline="") as file:
        found = [row["norm"] for row in csv.DictReader(file)]

    assert sorted(found) == ["", *["branches"] * 4, *["own"] * 4]
    table = rows(store)
    own, equal = (select(table, f"norm={norm}").rows for norm in ("own", "branches"))
    assert [r.get("merge.norm") for r in own] == [None] * 4
    assert [r.norm for r in equal] == ["branches"] * 4
    assert select(table, "merge.norm=none,merge=ties").rows == select(table, "norm=own,merge=ties").rows


def test_saved_reports_from_before_the_column_have_it(store, tmp_path):
    build_report(store, tmp_path)
    with (tmp_path / "results.csv").open(newline="") as file:
        old = [{name: text for name, text in row.items() if name != "norm"} for row in csv.DictReader(file)]
    with (tmp_path / "old.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(old[0]))
        writer.writeheader()
        writer.writerows(old)

    now, before = (read_csv(tmp_path / name) for name in ("results.csv", "old.csv"))

    assert [r.norm for r in before] == [r.norm for r in now]


def drawn(ax, axis: str = "y") -> dict[str, list[float]]:
    return {
        line.get_label(): list(line.get_data()[axis == "y"])
        for line in ax.lines
        if line.get_label()[0] != "_"
    }


def test_lambda_is_drawn_at_own_and_at_equal_norm_on_one_scale(store):
    table = rows(store)
    own, equal = scores_by_lambda(table, ["honesty"]).axes

    assert [ax.get_title() for ax in (own, equal)] == ["honesty, own norm", "honesty, equal norm"]
    assert own.get_ylim() == equal.get_ylim()
    for ax, norm in ((own, "own"), (equal, "branches")):
        assert drawn(ax).keys() == {"Linear", "TIES", "base"}
        for title, name in (("Linear", "linear"), ("TIES", "ties")):
            scores = [
                r["honesty"] for w in LAMBDAS for r in table if (r.norm, r.merge, r.weight) == (norm, name, w)
            ]
            assert drawn(ax)[title] == pytest.approx([100 * score for score in scores])


def test_table_of_lambda_and_merge_has_a_panel_for_each_norm(store):
    table = rows(store)
    panels = heat_map(table).axes

    assert [ax.get_title() for ax in panels] == ["SFT + DPO, own norm", "SFT + DPO, equal norm"]
    for ax, norm in zip(panels, ("own", "branches"), strict=True):
        numbers = {text.get_text().split("\n")[0] for text in ax.texts}
        assert numbers == {f"{100 * r['average']:.2f}" for r in table if r.norm == norm}


def test_norm_is_a_column_of_the_table_where_there_are_several(store, one_side):
    table = cells_table(Report(store).cells)
    place = [head.text for head in table.head].index("norm")

    shown = {
        (line.entries[0].text, line.entries[place].text)
        for line in table.lines
        if line.entries[1].text == "1e-4"
    }
    assert shown == {(method, norm) for method in ("Linear", "TIES") for norm in ("own", "branches")}
    assert "norm" not in [head.text for head in cells_table(one_side).head]


def test_the_missing_side_is_said_with_its_command(one_side, store, compose, capsys):
    (said,) = one_sided(one_side)
    command = said.partition("At equal norm: ")[2]

    assert command == "python train.py data=demo -m lambda=0,1e-4 merge=ties,linear merge.norm=branches"
    assert said in next(pictures(Path(), one_side)).caption
    print_table(one_side)
    assert said in capsys.readouterr().out
    words = [w.partition(",")[0] for w in shlex.split(command)[2:] if w != "-m"]
    assert compose(*words).merge.norm is Norm.branches
    assert one_sided(rows(store)) == [], "both sides are there"
    assert one_sided(one_side, [r for r in rows(store) if r.norm == "branches"]) == [], "nor beside them"
    assert one_sided(one_side[:1]) == [], "one lambda is no comparison"


def test_the_command_is_not_guessed_where_rows_were_made_otherwise(one_side):
    other = [Row(one_side[0] | {"command": "python train.py sft.lr=1 merge=linear"}), *one_side[1:]]

    assert one_sided(other)[0].endswith("At equal norm: the same command with merge.norm=branches")
