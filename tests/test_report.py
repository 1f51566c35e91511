"""The report over a synthetic store: real keys and folders, invented numbers."""

import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.image import imread
from synthetic_store import EVALUATE, PAFT, fill, grid, with_lambda

from paft.config import EvaluateConfig, Paradigm, TaskConfig, Ties, TinyModel
from paft.graph import build
from paft.report.__main__ import main
from paft.report.build import build_report, print_table
from paft.report.labels import method, section
from paft.report.table import columns, key_of, row, rows

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


# --- rows --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", [PAFT, *(replace(PAFT, paradigm=p) for p in Paradigm)])
def test_key_of_against_stage_key(cell):
    stage = build(with_lambda(cell, 1e-5))

    stored = json.loads(json.dumps(stage.identity))

    assert key_of(stored) == stage.key


def test_row_of_a_merged_cell_holds_setting_scores_and_keys(tmp_path):
    cell = replace(with_lambda(PAFT, 1e-4), merge=Ties(density=0.3, weights=[1.0, 0.5]))
    (stage,) = fill(tmp_path, [cell])
    merge = stage.inputs["model"]
    scores = json.loads((tmp_path / "evaluate" / stage.key / "results.json").read_text())

    found = row(tmp_path / "evaluate" / stage.key)

    expected = {
        "base": "SmolLM2-135M",
        "paradigm": "parallel",
        "preference": "dpo",
        "lambda": 1e-4,
        "merge": "ties",
        "merge.density": 0.3,
        "merge.weights": "1.0,0.5",
        "seed": 42,
        "evaluate": "demo",
        "honesty": scores["tasks"]["honesty"]["score"],
        "honesty_stderr": 0.02,
        "average": scores["average"],
        "lower_is_better": "bits",
        "sft_sparsity": 0.81,
        "preference_sparsity": 0.11,
        "sign_conflict": 0.3,
        "sft_lr": 1e-3,
        "preference_lr": 2e-4,
        "variant": "ties weights=1,1",
        "evaluate_key": stage.key,
        "merge_key": merge.key,
        "sft_key": merge.inputs["sft"].key,
        "preference_key": merge.inputs["preference"].key,
    }
    assert {name: found[name] for name in expected} == expected


def test_row_survives_the_deletion_of_its_model_and_adapters(tmp_path):
    (stage,) = fill(tmp_path, [PAFT])
    before = row(tmp_path / "evaluate" / stage.key)
    for name in ("merge", "sft", "preference", "data"):
        for folder in (tmp_path / name).iterdir():
            folder.rename(tmp_path / f"gone-{folder.name}")

    after = row(tmp_path / "evaluate" / stage.key)

    assert after == before | dict.fromkeys(
        ("sft_sparsity", "sft_hoyer", "preference_sparsity", "preference_hoyer")
    )


def test_rows_stand_in_the_order_of_table_1(store):
    table = rows(store)

    merges = ["SLERP", "Task Arithmetic", "TIES", "DARE TIES", "Linear"]
    sparse = "PAFT (SFT_sparse+DPO)"
    assert [(section(r), r["lambda"], method(r)) for r in table] == [
        *((sparse, 1e-4, m) for m in merges),
        *((sparse, 1e-3, m) for m in merges),
        *(("Parallel SFT+DPO", 0.0, m) for m in merges),
        ("Sequential", 1e-4, "SFT_sparse+DPO"),
        ("Sequential", 1e-3, "SFT_sparse+DPO"),
        ("Sequential", 0.0, "SFT+DPO"),
        ("Individual", 1e-4, "SFT_sparse-alone"),
        ("Individual", 1e-3, "SFT_sparse-alone"),
        ("Individual", 0.0, "SFT-alone"),
        ("Individual", None, "DPO-alone"),
        ("Individual", None, "SmolLM2-135M"),
    ]


@pytest.mark.parametrize("content", ["{", "[]", "null", '{"identity": 3}', '{"identity": {"inputs": []}}'])
def test_damaged_folder_is_left_out_with_a_warning(tmp_path, caplog, content):
    good, bad = fill(tmp_path, [PAFT, replace(PAFT, paradigm=Paradigm.base)])
    (tmp_path / "evaluate" / bad.key / "stage.json").write_text(content)

    with caplog.at_level(logging.WARNING, logger="paft"):
        table = rows(tmp_path)

    assert [r["evaluate_key"] for r in table] == [good.key]
    assert bad.key in caplog.text


@pytest.mark.parametrize("name", ["stage.json", "results.json"])
def test_half_written_folder_is_left_out_and_a_partial_one_silently(tmp_path, caplog, name):
    good, bad = fill(tmp_path, [PAFT, replace(PAFT, paradigm=Paradigm.base)])
    (tmp_path / "evaluate" / bad.key / name).unlink()
    (tmp_path / "evaluate" / "0123456789abcdef.partial").mkdir()

    with caplog.at_level(logging.WARNING, logger="paft"):
        table = rows(tmp_path)

    assert [r["evaluate_key"] for r in table] == [good.key]
    assert bad.key in caplog.text
    assert "partial" not in caplog.text


def test_task_named_like_a_report_column_is_refused_by_name(tmp_path):
    (stage,) = fill(
        tmp_path, [replace(PAFT, evaluate=replace(EVALUATE, tasks={"seed": TaskConfig("t", "m")}))]
    )

    with pytest.raises(ValueError, match="its own column 'seed'"):
        row(tmp_path / "evaluate" / stage.key)


def test_reading_rows_imports_neither_torch_nor_matplotlib_nor_pandas():
    code = "import sys, paft.report.table; print({'torch', 'matplotlib', 'pandas'} & set(sys.modules))"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"


# --- files -------------------------------------------------------------------------------------------


def test_report_writes_csv_page_and_pictures(store, tmp_path):
    table = build_report(store, tmp_path)

    frame = pd.read_csv(tmp_path / "results.csv", keep_default_na=False, na_values={"average": [""]})
    assert list(frame.columns) == columns(table)
    assert frame["evaluate_key"].tolist() == [r["evaluate_key"] for r in table]
    assert frame["average"].tolist() == [r["average"] for r in table]
    page = (tmp_path / "index.html").read_text()
    assert all(f"{100 * r['honesty']:.2f}" in page and r["evaluate_key"] in page for r in table)
    assert "Caution" not in page
    pictures = sorted(tmp_path.glob("*.png"))
    assert len(pictures) == 6
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


def test_print_table_shows_the_chosen_rows_and_their_base(store, capsys):
    table = rows(store)

    print_table(table, [table[0]["evaluate_key"]])

    printed = capsys.readouterr().out
    assert "SLERP" in printed and "SmolLM2-135M" in printed
    assert "DARE TIES" not in printed
