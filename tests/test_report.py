"""The report over a synthetic store: real keys and folders, invented numbers."""

import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_store import EVALUATE, PAFT, fill, grid, with_lambda

from paft.config import Paradigm, TaskConfig
from paft.graph.build import build
from paft.merge.methods import DareTies, Ties
from paft.report.labels import method, section
from paft.report.lineage import family, key_of
from paft.report.table import row, rows


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


def test_family_joins_the_seeds_of_a_cell_and_nothing_else():
    cells = {
        "first": PAFT,
        "other seed": replace(PAFT, seed=1),
        "lambda": with_lambda(PAFT, 1e-3),
        "rows": replace(PAFT, data=replace(PAFT.data, sft=replace(PAFT.data.sft, seed=1))),
        "dare": replace(PAFT, merge=DareTies(seed=PAFT.seed)),
        "dare, other seed": replace(PAFT, seed=1, merge=DareTies(seed=1)),
        "dare, other masks": replace(PAFT, merge=DareTies(seed=7)),
    }

    found = {name: family(json.loads(json.dumps(build(cell).identity))) for name, cell in cells.items()}

    assert found["first"] == found["other seed"]
    assert found["dare"] == found["dare, other seed"]
    assert len({found[n] for n in ("first", "lambda", "rows", "dare", "dare, other masks")}) == 5


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
