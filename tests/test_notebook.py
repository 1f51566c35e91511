"""The notebooks run from top to bottom on stores of finished cells."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from synthetic_store import fill, grid

from paft.merge.methods import Ties
from paft.report.build import build_report

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


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


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebook_is_stored_without_outputs(path: Path) -> None:
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]

    assert cells
    assert all(not c.outputs and c.execution_count is None for c in cells)
