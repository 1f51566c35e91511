"""A data file that is edited after its sha256 went into the keys."""

import json
from pathlib import Path

import pytest
from processes import finished, own_files, start

pytestmark = pytest.mark.slow


def write(path: Path, num_rows: int) -> None:
    rows = [{"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(num_rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_file_edited_before_it_is_read_is_not_read(tmp_path):
    rows = tmp_path / "rows.jsonl"
    write(rows, 64)
    run = start("paradigm=sft", what=own_files(rows), logs=tmp_path)
    run.until(lambda: list(tmp_path.glob("stages/data/*.partial")))
    write(rows, 65)

    assert run.wait() == 2, run.said[-3000:]

    assert f"error: {rows} changed after this run was planned: its sha256 was " in run.said
    assert finished(tmp_path / "stages") == {}


def test_file_edited_during_a_grid_ends_it_before_the_next_cell(tmp_path):
    rows = tmp_path / "rows.jsonl"
    write(rows, 64)
    run = start("-m", "paradigm=sft", "lambda=0,1e-4", what=own_files(rows), logs=tmp_path)
    run.until(lambda: list(tmp_path.glob("stages/sft/*.partial")))
    write(rows, 65)

    assert run.wait() == 2, run.said[-3000:]

    assert "error: a data or model file changed after the grid was planned: cell 1 " in run.said
    names = [folder.parent.name for folder in finished(tmp_path / "stages")]
    assert sorted(names) == ["data", "evaluate", "merge", "sft"]  # of cell 0
    assert not list(tmp_path.glob("stages/*/*.partial"))
