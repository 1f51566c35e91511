"""The W&B report without a server: its JSON, from the same cells as the page."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from synthetic_store import PAFT, fill, grid
from wandb_server import ID, wandb_server

from paft.config import TinyModel, Wandb
from paft.report.__main__ import main
from paft.report.build import studies
from paft.report.table import rows
from paft.report.wandb_report import build, json_spec, lambda_by_merge, publish


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("paper") / "stages"
    fill(root, [replace(c, seed=s) for c in grid(lambdas=(0.0, 1e-4)) for s in (0, 1)])
    return root


def blocks(spec: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [b for b in spec["spec"]["blocks"] if b["type"] == kind]


def test_offline_writes_the_json_and_says_where(store, tmp_path, capsys):
    main(["wandb", "--store", str(store), "--out", str(tmp_path), "--project", "mine"])

    spec = json.loads((tmp_path / "wandb_report.json").read_text())
    assert capsys.readouterr().out == f"W&B report: {tmp_path / 'wandb_report.json'}\n"
    assert (spec["projectName"], spec["id"]) == ("mine", "")
    assert len(blocks(spec, "markdown-block")) == 3


def test_run_sets_hold_the_runs_of_each_paradigm(store):
    table = rows(store)
    spec = json_spec(build(studies(store, table), project="paft", entity=""))

    (grid_,) = blocks(spec, "panel-grid")
    found = {}
    for run_set in grid_["metadata"]["runSets"]:
        (only,) = run_set["filters"]["filters"]
        assert (only["key"], only["op"]) == ({"section": "config", "name": "evaluate_key"}, "IN")
        found[run_set["name"]] = set(only["value"])

    paradigms = dict.fromkeys(r["paradigm"] for r in table)
    assert found == {p: {r["evaluate_key"] for r in table if r["paradigm"] == p} for p in paradigms}


def test_tables_hold_the_numbers_of_the_page(store):
    (study,) = studies(store, rows(store))

    table, heat, claims = (
        b["content"] for b in blocks(json_spec(build([study], project="p", entity="")), "markdown-block")
    )

    for row in study.cells:
        cell = f"{100 * row['average']:.2f} ± {100 * row['average_stderr']:.2f}"
        assert cell in table
        assert (cell in heat) == (row["paradigm"] == "parallel")
    assert all(f.claim in claims and f.verdict.value in claims for f in study.findings)
    assert claims.count("\n") == len(study.findings) + 1


def test_panels_draw_scores_sparsities_and_skills(store):
    spec = json_spec(build(studies(store, rows(store)), project="p", entity=""))

    (grid_,) = blocks(spec, "panel-grid")
    panels = grid_["metadata"]["panelBankSectionConfig"]["panels"]
    kinds = [p["viewType"] for p in panels]
    # four tasks and the average, two sparsities; three pairs of skills and retention
    assert (kinds.count("Bar Chart"), kinds.count("Scatter Plot")) == (7, 3)
    assert any("tool_call against mmlu_dev" in json.dumps(p) for p in panels)


def test_names_with_quotes_pipes_and_markup_stay_names(tmp_path):
    name = "it's \"a\" | `b` <b> Config('x') = 1"
    fill(tmp_path, [replace(PAFT, model=TinyModel(name=name))])
    found = studies(tmp_path, rows(tmp_path))

    spec = json_spec(build(found, project="p", entity=""))

    (grid_,) = blocks(spec, "panel-grid")
    assert [s["name"] for s in grid_["metadata"]["runSets"]] == ["parallel"]
    assert lambda_by_merge(found[0].cells, []) == "No merged cells."


def test_id_of_a_saved_report_is_kept(store, tmp_path):
    publish(store, tmp_path, Wandb())
    path = tmp_path / "wandb_report.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"id": "VmlldzoxMjM="}))

    publish(store, tmp_path, Wandb())

    assert json.loads(path.read_text())["id"] == "VmlldzoxMjM="


def publish_online(store: Path, out: Path, address: str) -> subprocess.CompletedProcess[str]:
    """`python -m paft.report wandb` with a key: W&B keeps its server's address for the life of a process."""
    known = {"WANDB_MODE": "online", "WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": address}
    command = [sys.executable, "-m", "paft.report", "wandb", "--store", str(store), "--out", str(out)]
    # a server that is away is asked again for so many seconds
    environment = os.environ | known | {"WANDB_HTTP_TIMEOUT": "1"}
    return subprocess.run(
        [*command, "--entity", "me"], env=environment, capture_output=True, text=True, timeout=120
    )


def test_with_a_key_it_is_saved_once_and_then_replaced(store, tmp_path):
    with wandb_server() as (address, saved):
        first = publish_online(store, tmp_path, address)
        publish_online(store, tmp_path, address)

    assert f"{address}/me/paft/reports/" in first.stdout
    assert [s["id"] for s in saved] == [None, ID]
    written = json.loads((tmp_path / "wandb_report.json").read_text())
    assert written["id"] == ID
    assert [b["type"] for b in json.loads(saved[1]["spec"])["blocks"]] == [
        b["type"] for b in written["spec"]["blocks"]
    ]


def test_unreachable_server_costs_only_the_upload(store, tmp_path):
    done = publish_online(store, tmp_path, "http://127.0.0.1:9")

    assert done.stdout.endswith(f"W&B report: {tmp_path / 'wandb_report.json'}\n")
    assert "saving the report failed" in done.stderr
    assert json.loads((tmp_path / "wandb_report.json").read_text())["id"] == ""


def test_empty_store_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no finished evaluation"):
        publish(tmp_path, tmp_path, Wandb())
