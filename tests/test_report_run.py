"""What a run shows of itself in a store that holds more: its own numbers, its own tables, and where the rest is."""

from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_store import PAFT, fill, with_lambda

from paft.config import Paradigm
from paft.merge.methods import DareTies, Linear, Slerp, Ties
from paft.report.build import Report, build_report
from paft.report.labels import Differences, labels
from paft.report.table import rows
from paft.report.terminal import print_run

SMALL = replace(PAFT, data=replace(PAFT.data, sft=replace(PAFT.data.sft, num_rows=64)))


def test_a_second_seed_shows_its_own_numbers_and_not_the_mean(tmp_path):
    first, second = fill(tmp_path, [replace(PAFT, seed=s) for s in (42, 7)])

    ((_, (cell,)),) = Report(tmp_path).of_run({second.key})

    (own,) = [r for r in rows(tmp_path) if r.evaluate_key == second.key]
    assert (cell.num_seeds, cell["honesty"], cell["seeds"]) == (1, own["honesty"], "7")
    ((_, (both,)),) = Report(tmp_path).of_run({first.key, second.key})
    assert both.num_seeds == 2


def test_tables_of_earlier_runs_on_other_data_are_not_shown_though_the_base_is_theirs_too(tmp_path):
    fill(tmp_path, [SMALL])
    stages = fill(tmp_path, [PAFT, replace(PAFT, paradigm=Paradigm.base)])

    (table,) = Report(tmp_path).of_run({s.key for s in stages})

    scope, block = table
    assert scope.data == "tool_call (512 rows) + honesty (512 rows)"
    assert [r.paradigm for r in block] == ["parallel", "base"]


def test_an_earlier_base_stands_beside_the_run(tmp_path):
    fill(tmp_path, [replace(PAFT, paradigm=Paradigm.base)])
    (stage,) = fill(tmp_path, [PAFT])

    ((_, block),) = Report(tmp_path).of_run({stage.key})

    assert [r.paradigm for r in block] == ["parallel", "base"]


def test_the_only_model_is_named_by_its_folder_and_nothing_else_is_hidden(tmp_path, capsys):
    (stage,) = fill(tmp_path, [PAFT])

    print_run(Report(tmp_path).of_run({stage.key}), others=[], store=tmp_path, page=tmp_path, everything="")

    printed = capsys.readouterr().out
    assert f"Model: {tmp_path / 'merge' / stage.inputs['model'].key}" in printed
    assert "more evaluation" not in printed


def test_a_name_too_long_for_the_terminal_breaks_and_its_scores_stand(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    many = [replace(PAFT, merge=Ties(weights=[1.0, w], density=w)) for w in (0.123456789, 0.987654321)]
    stages = fill(tmp_path, many)

    print_run(
        Report(tmp_path).of_run({s.key for s in stages}),
        others=[],
        store=tmp_path,
        page=tmp_path,
        everything="",
    )

    printed = capsys.readouterr().out
    assert "…" not in printed
    assert all(f"{100 * r['average']:.2f} ± " in printed for r in rows(tmp_path))
    assert "density=0.1235" in printed.replace("\n", "") or "0.1235" in printed


def test_a_difference_between_methods_is_named_or_said_of_the_others(tmp_path):
    """Methods that were given different trainings may not stand there as if they had been given one."""
    quick = replace(with_lambda(PAFT, 1e-4), merge=Linear())
    slow = replace(quick, sft=replace(quick.sft, lr=5e-4), merge=DareTies())
    fill(tmp_path, [quick, replace(quick, merge=Slerp()), slow])
    table = rows(tmp_path)

    assert labels(table) == ["SLERP", "DARE TIES sft.lr=5e-4", "Linear"]
    assert Differences(table).unnamed() == ["sft.lr=1e-3"]


def test_pictures_of_what_has_not_changed_stay_and_those_of_the_past_go(tmp_path):
    store, out = tmp_path / "stages", tmp_path / "report"
    fill(store, [PAFT, SMALL])
    build_report(store, out)
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("*.png")}
    build_report(store, out)
    assert {p.name: p.stat().st_mtime_ns for p in out.glob("*.png")} == before
    (out / "1-sparsity.png").unlink()
    fill(store, [replace(PAFT, paradigm=Paradigm.sft)])

    build_report(store, out)

    after = {p.name: p.stat().st_mtime_ns for p in out.glob("*.png")}
    assert after.keys() == before.keys()
    redrawn = {name for name in after if after[name] != before[name]}
    assert "1-sparsity.png" in redrawn and {name[0] for name in redrawn} != {"2"}


@pytest.mark.parametrize("paper", [None, Path(__file__).parents[1] / "docs" / "paper_tables.csv"])
def test_the_papers_columns_come_with_a_word_of_caution(tmp_path, paper):
    fill(tmp_path / "stages", [PAFT])

    build_report(tmp_path / "stages", tmp_path, paper=paper)

    said = "never a number with a number" in (tmp_path / "index.html").read_text()
    assert said == (paper is not None)
