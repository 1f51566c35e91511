"""The results notebook runs from top to bottom on a store of finished cells."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from synthetic_store import fill, grid

from paft.config import Ties
from paft.report.build import build_report

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks/results.ipynb"


def test_notebook_runs_on_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "stages", grid(merges=[Ties()], lambdas=[0.0, 1e-4]))
    build_report(tmp_path / "stages", tmp_path / "report")
    monkeypatch.setenv("PAFT_LOGS", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)

    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()

    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 6, "two of scores, sparsity, conflict, two of training"


def test_notebook_is_stored_without_outputs() -> None:
    cells = [c for c in nbformat.read(NOTEBOOK, as_version=4).cells if c.cell_type == "code"]

    assert cells
    assert all(not c.outputs and c.execution_count is None for c in cells)
