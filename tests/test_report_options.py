"""Every option of a cell is a column of results.csv under its name on the command line, and a word to select by."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from synthetic_store import PAFT, fill, with_lambda

from paft.config import FileData, FileSource, L1Config, LoraConfig, Paradigm, Quantization
from paft.objectives import DPOLoss
from paft.report.build import Report, build_report
from paft.report.compare import compare
from paft.report.scope import title
from paft.report.selection import select
from paft.report.table import row, rows

LOSSES = [
    replace(PAFT, preference=replace(PAFT.preference, loss=loss))
    for loss in (DPOLoss.sigmoid, DPOLoss.hinge, DPOLoss.ipo)
]


def test_options_of_every_part_are_columns(tmp_path):
    branch = replace(PAFT.sft, lora=LoraConfig(rank=8), epochs=3)
    branch = replace(branch, l1=L1Config(1e-4))
    (stage,) = fill(tmp_path, [replace(PAFT, sft=branch)])

    found = row(tmp_path / "evaluate" / stage.key)

    expected = {
        "preference.loss": "sigmoid",
        "preference.label_smoothing": 0.0,
        "preference.lora.rank": 16,
        "sft.epochs": 3,
        "sft.lora.rank": 8,
        "sft.max_steps": None,
        "sft.global_batch_size": 16,
        "sft.lora.target_modules": "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj",
        "sft.l1.method": "subgradient",
        "sft.l1.target_sparsity": None,
        "data.sft.num_rows": 512,
        "model.quantization": "none",
        "evaluate.tasks.honesty.metric": "acc,none",
        "evaluate.split": "full",
    }
    assert {name: found[name] for name in expected} == expected
    assert "sft.l1.weight" not in found, "lambda is its name"


def test_results_csv_ends_with_them_and_begins_as_ever(tmp_path):
    fill(tmp_path / "stages", [PAFT, replace(PAFT, paradigm=Paradigm.base)])

    build_report(tmp_path / "stages", tmp_path)

    frame = pd.read_csv(tmp_path / "results.csv")
    names = list(frame)
    assert names[:6] == ["base", "data", "paradigm", "preference", "lambda", "merge"]
    assert names.index("evaluate_key") < min(
        names.index(n) for n in ("sft.lr", "model.dtype", "preference.loss")
    )
    assert frame["sft.epochs"].tolist()[0] == 1 and frame["sft.epochs"].isna()[1]


def test_a_grid_over_losses_is_compared_by_them(tmp_path):
    fill(tmp_path, LOSSES)

    found = compare(tmp_path, "preference.loss=ipo", "preference.loss=hinge")

    assert len(found.pairs) == 1 and not found.also_differ
    assert [r["preference.loss"] for pair in found.pairs for r in (*pair.left, *pair.right)] == [
        "ipo",
        "hinge",
    ]


@pytest.mark.parametrize(
    "word", ["sft_lr=1e-3", "sft.lr=0.001", "sft.l1.weight=1e-4", "l1_of=delta", "lambda=1.0e-4"]
)
def test_other_names_and_notations_select_the_same(tmp_path, word):
    fill(tmp_path, [with_lambda(PAFT, 1e-4), PAFT])

    (found,) = select(rows(tmp_path), word).rows

    assert found.weight == 1e-4


def test_a_number_is_selected_as_it_is_shown_and_told_from_its_neighbour(tmp_path):
    weights = (1.2341111e-4, 1.2349999e-4)
    fill(tmp_path, [with_lambda(PAFT, w) for w in weights])

    found = select(rows(tmp_path), "lambda=1.234e-4").rows

    assert [r.weight for r in found] == [weights[0]]


def test_quantization_stands_in_the_title_or_in_the_row(tmp_path):
    four_bits = replace(PAFT, model=replace(PAFT.model, quantization=Quantization.nf4))
    fill(tmp_path / "alone", [four_bits])
    fill(tmp_path / "both", [four_bits, PAFT])

    (alone,), (both,) = (Report(tmp_path / name).studies for name in ("alone", "both"))

    assert title(alone.scope, alone.cells).startswith("SmolLM2-135M · nf4 · tool_call")
    assert " nf4 " not in title(both.scope, both.cells)


def test_own_files_are_named_where_the_store_knows_them(tmp_path):
    mine = tmp_path / "mine.jsonl"
    mine.write_text('{"prompt": "a", "answer": "b"}\n')
    data = FileData(name="jsonl", sft=FileSource(path=str(mine)), preference=FileSource(path=str(mine)))
    (stage,) = fill(tmp_path / "stages", [replace(PAFT, data=data, paradigm=Paradigm.sft)])
    sft = stage.inputs["model"].inputs["sft"].inputs["data"]
    digest = sft.config.files["train"][:8]
    unnamed = row(tmp_path / "stages" / "evaluate" / stage.key)["sft_data"]
    path = tmp_path / "stages" / "data" / sft.key / "stage.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"metrics": {"file": "mine.jsonl"}}))

    named = row(tmp_path / "stages" / "evaluate" / stage.key)["sft_data"]

    assert (unnamed, named) == (f"file {digest}", f"mine.jsonl ({digest})")


def test_command_of_a_row_is_kept_where_its_stage_tells(tmp_path):
    (stage,) = fill(tmp_path, [PAFT])
    path: Path = tmp_path / "evaluate" / stage.key / "stage.json"
    record = json.loads(path.read_text())
    assert row(path.parent)["command"] == ""
    record["run"]["command"] = "python train.py 'merge.weights=[1,0.5]'"
    path.write_text(json.dumps(record))

    build_report(tmp_path, tmp_path / "report")

    assert row(path.parent)["command"] == "python train.py 'merge.weights=[1,0.5]'"
    page = (tmp_path / "report" / "index.html").read_text()
    assert "python train.py &#39;merge.weights=[1,0.5]&#39;" in page
    assert f"{tmp_path / 'merge' / stage.inputs['model'].key}" in page
