"""The notebooks run from top to bottom on stores of finished cells, and say what they need where there is none."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from synthetic_store import fill, grid

from paft.merge.methods import Ties
from paft.report.build import build_report

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
EACH = pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda p: p.stem)


def pictures(name: str) -> int:
    """Run a notebook; how many pictures it shows."""
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def test_results_and_study_run_on_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "stages", grid(merges=[Ties()], lambdas=[0.0, 1e-4]))
    build_report(tmp_path / "stages", tmp_path / "report")
    monkeypatch.setenv("PAFT_LOGS", str(tmp_path))
    assert pictures("results.ipynb") == 6, "two of scores, sparsity, conflict, two of training"
    assert pictures("study.ipynb") == 3, "heat map, Pareto, sparsity"


def test_anatomy_and_sparsity_run_on_real_adapters(smoke_grid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAFT_LOGS", str(smoke_grid.logs))
    assert pictures("anatomy_of_a_merge.ipynb") == 5, "magnitudes, signs, TIES, SLERP, the five merges"
    assert pictures("sparsity_and_learning_rate.ipynb") == 2, "by distance, by learning rate"


@EACH
def test_notebook_without_a_store_says_what_to_run_first(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAFT_LOGS", str(tmp_path))
    notebook = nbformat.read(path, as_version=4)

    with pytest.raises(CellExecutionError) as stopped:
        NotebookClient(notebook, timeout=120, kernel_name="python3").execute()

    assert stopped.value.ename == "SystemExit"
    assert all(part in stopped.value.evalue for part in (str(tmp_path), "make demo", "PAFT_LOGS"))
    shown = [line for c in notebook.cells for o in c.get("outputs", []) for line in o.get("traceback", [])]
    assert not any("Traceback" in line or "File" in line for line in shown)


@EACH
def test_notebook_tells_its_reader_of_the_folder_of_logs(path: Path) -> None:
    first = nbformat.read(path, as_version=4).cells[0]

    assert first.cell_type == "markdown"
    assert "PAFT_LOGS" in first.source and "make demo" in first.source


def type_check(*notebooks: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, NOTEBOOKS / "check_types.py", *notebooks]
    return subprocess.run(command, capture_output=True, text=True)


def test_types_of_the_notebooks_hold() -> None:
    done = type_check()

    assert done.returncode == 0, done.stdout + done.stderr


def test_a_name_that_moved_is_told_of_a_notebook(tmp_path: Path) -> None:
    moved = nbformat.v4.new_code_cell("%matplotlib inline\nfrom paft.report.table import moved")
    nbformat.write(nbformat.v4.new_notebook(cells=[moved]), tmp_path / "broken.ipynb")

    done = type_check(tmp_path / "broken.ipynb")

    assert done.returncode == 1
    assert 'broken.py:2: error: Module "paft.report.table" has no attribute "moved"' in done.stdout


@EACH
def test_notebook_is_stored_without_outputs(path: Path) -> None:
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]

    assert cells
    assert all(not c.outputs and c.execution_count is None for c in cells)
