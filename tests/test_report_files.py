"""What the report writes and prints: tables, page, pictures."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from synthetic_store import EVALUATE, ITEMS, PAFT, fill, grid, with_lambda

from paft.config import EvaluateConfig, Paradigm, TaskConfig, TinyModel
from paft.report.__main__ import main
from paft.report.build import Report, build_report, studies
from paft.report.compare import compare
from paft.report.markdown import filled
from paft.report.table import columns, rows
from paft.report.terminal import print_run, print_table

PAPER = Path(__file__).parents[1] / "docs" / "paper_tables.csv"
HOSTILE = replace(
    PAFT,
    model=TinyModel(name="<script>alert(1)</script> $x^$ [bold]"),
    evaluate=EvaluateConfig(name="<b>&", tasks={"<i>$^{": TaskConfig("t", "m")}),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("paper") / "stages"
    fill(root, grid())
    return root


def test_report_writes_csv_page_and_pictures(store, tmp_path):
    table = build_report(store, tmp_path)

    frame = pd.read_csv(tmp_path / "results.csv", keep_default_na=False, na_values={"average": [""]})
    every = rows(store)
    assert list(frame.columns) == columns(every)
    assert frame["evaluate_key"].tolist() == [r["evaluate_key"] for r in every]
    assert frame["average"].tolist() == [r["average"] for r in every]
    assert pd.read_csv(tmp_path / "cells.csv")["evaluate_key"].tolist() == [r["evaluate_key"] for r in table]
    claims = pd.read_csv(tmp_path / "claims.csv")
    assert set(claims["verdict"]) == {"cannot tell here"}, "one seed tells nothing of other trainings"
    page = (tmp_path / "index.html").read_text()
    assert all(f"{100 * r['honesty']:.2f}" in page and r["evaluate_key"] in page for r in table)
    assert "Caution" not in page
    pictures = sorted(tmp_path.glob("*.png"))
    assert len(pictures) == 8
    assert all(p.name in page and imread(p).std() > 0.02 for p in pictures), "no empty picture"
    assert not list(tmp_path.glob("*.tmp"))


def test_page_escapes_names_and_warns_of_limits_and_random_weights(tmp_path):
    smoke = replace(PAFT, model=TinyModel(name="tiny"), evaluate=replace(EVALUATE, limit=8))
    fill(tmp_path / "stages", [HOSTILE, smoke])

    build_report(tmp_path / "stages", tmp_path)

    page = (tmp_path / "index.html").read_text()
    assert "<script" not in page and "<i>" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "1 of 2 rows were scored on the first few items" in page
    assert "random weights" in page


def test_seeds_of_a_cell_are_one_row_with_their_mean_and_its_error(tmp_path):
    fill(tmp_path / "stages", [replace(PAFT, seed=s) for s in (0, 1, 2)])
    every = rows(tmp_path / "stages")

    (cell,) = build_report(tmp_path / "stages", tmp_path)

    honesty = np.array([r["honesty"] for r in every])
    assert (cell["seeds"], cell["num_seeds"]) == ("0,1,2", 3)
    assert cell["honesty"] == pytest.approx(honesty.mean())
    assert cell["average"] == pytest.approx(np.mean([r["average"] for r in every]))
    over_items = np.sqrt(cell["honesty"] * (1 - cell["honesty"]) / ITEMS)
    assert cell["honesty_stderr"] >= 0.9 * over_items and cell["average_stderr"] > 0
    assert len(pd.read_csv(tmp_path / "results.csv")) == 3
    assert len(pd.read_csv(tmp_path / "cells.csv")) == 1


def test_papers_numbers_stand_beside_where_asked(tmp_path):
    fill(tmp_path / "stages", [with_lambda(PAFT, 1e-4)])

    build_report(tmp_path / "stages", tmp_path, paper=PAPER)
    beside = (tmp_path / "index.html").read_text()
    build_report(tmp_path / "stages", tmp_path)

    assert "65.24" in beside and "66.02" in beside, "TIES with L1 in Table 1, both bases"
    assert "65.24" not in (tmp_path / "index.html").read_text()


@pytest.mark.parametrize("damage", ["", "{", '{"column": "honesty"}', "[]"])
def test_items_that_do_not_make_the_score_leave_lm_evals_error(tmp_path, caplog, damage):
    (stage,) = fill(tmp_path, [PAFT])
    samples = tmp_path / "evaluate" / stage.key / "samples.jsonl"
    lines = [line for line in samples.read_text().splitlines() if "honesty" not in line]
    wrong = [json.dumps({"column": "honesty", "item": n, "value": 0.123}) for n in range(10)]
    samples.write_text("\n".join([*lines, *wrong, damage]))

    with caplog.at_level(logging.WARNING, logger="paft"):
        (study,) = studies(tmp_path, rows(tmp_path))

    assert study.cells[0]["honesty_stderr"] == 0.02
    assert stage.key in caplog.text


@pytest.mark.parametrize("paradigm", list(Paradigm))
def test_one_row_is_a_report(tmp_path, paradigm):
    fill(tmp_path / "stages", [replace(PAFT, paradigm=paradigm)])

    assert len(build_report(tmp_path / "stages", tmp_path)) == 1

    assert (tmp_path / "1-scores_by_method.png").stat().st_size > 5_000


def test_empty_store_writes_nothing_and_exits_with_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--store", str(tmp_path / "none"), "--out", str(tmp_path / "report")])

    assert exit_.value.code == 2
    assert "holds no finished evaluation" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_command_prints_scores_and_where_the_page_is(tmp_path, capsys):
    fill(tmp_path / "stages", [HOSTILE, replace(HOSTILE, paradigm=Paradigm.base)])

    main(["--store", str(tmp_path / "stages"), "--out", str(tmp_path / "report")])

    printed = capsys.readouterr().out
    assert "TIES" in printed and "[bold]" in printed
    assert printed.splitlines()[-1] == f"Report: {tmp_path / 'report' / 'index.html'}"


def test_table_of_a_run_is_its_rows_and_their_base(store, capsys):
    report = Report(store)
    first = report.table[0]["evaluate_key"]

    print_run(
        report.of_run({first}),
        others=report.table[:22],
        store=store,
        page=store,
        everything="python -m paft.report",
    )

    printed = capsys.readouterr().out
    assert "SLERP" in printed and "DARE TIES" not in printed
    assert printed.count("SmolLM2-135M · tool_call (512 rows) + honesty (512 rows) · demo") == 1
    assert f"{store} holds 22 more evaluations: python -m paft.report shows all" in printed


# --- one item a subtask ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_item_each(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cells; `honesty` is a mean over subtasks of one item each, as `evaluate.limit=1` leaves them."""
    root = tmp_path_factory.mktemp("limited") / "stages"
    cells = [replace(with_lambda(PAFT, w), seed=s) for w in (0.0, 1e-4) for s in (0, 1, 2)]
    for stage in fill(root, cells):
        samples = root / "evaluate" / stage.key / "samples.jsonl"
        lines = [json.loads(line) for line in samples.read_text().splitlines()]
        for line in (found for found in lines if found["column"] == "honesty"):
            line["item"] = f"mmlu_{line['item']}/0"
        samples.write_text("\n".join(map(json.dumps, lines)))
        results = root / "evaluate" / stage.key / "results.json"
        found = json.loads(results.read_text())
        found["tasks"]["honesty"]["stderr"] = 0.0
        results.write_text(json.dumps(found))
    return root


def test_an_error_that_nothing_shows_is_unknown_everywhere(one_item_each, tmp_path, capsys):
    (first, second) = build_report(one_item_each, tmp_path)
    print_table([first, second])

    assert first["honesty_stderr"] is first["average_stderr"] is second["honesty_stderr"] is None
    assert first["tool_call_stderr"] > 0
    for name in ("results.csv", "cells.csv"):
        assert pd.read_csv(tmp_path / name)["honesty_stderr"].isna().all(), name
    written = f"{100 * first['honesty']:.2f}"
    printed = capsys.readouterr().out
    assert (
        f"{written} ± ?" in printed and "? where nothing shows it: a task or subtask has one item" in printed
    )
    assert f"{written}</strong><small>±?" in (tmp_path / "index.html").read_text().replace("\n", "")
    page = tmp_path / "page.md"
    page.write_text("<!-- cells cells.csv: lambda, honesty -->\n<!-- end -->\n")
    assert f"{written} ± ?" in filled(page)


def test_nothing_is_found_where_nothing_shows_the_error(one_item_each, tmp_path):
    found = compare(one_item_each, "lambda=1e-4", "lambda=0")
    build_report(one_item_each, tmp_path)

    by_name = {d.column.name: d for d in found.differences}
    for name in ("honesty", "average"):
        assert (by_name[name].difference.p, by_name[name].corrected) == (None, None)
    assert by_name["tool_call"].corrected is not None
    claims = pd.read_csv(tmp_path / "claims.csv").set_index("claim")
    assert claims.loc["L1 helps every merge", "verdict"] == "cannot tell here"
    assert "a task or subtask has one item" in claims.loc["L1 helps every merge", "why"]


def test_old_average_of_a_column_where_lower_is_better_is_not_shown(tmp_path, caplog):
    (stage,) = fill(tmp_path, [PAFT])
    path = tmp_path / "evaluate" / stage.key / "results.json"
    results = json.loads(path.read_text())
    results["tasks"]["bits"]["in_average"] = True
    path.write_text(json.dumps(results | {"average": 0.9}))

    with caplog.at_level(logging.WARNING, logger="paft"):
        (row,) = rows(tmp_path)

    assert row["average"] is None and "lower is better in bits" in caplog.text
