"""The examples of docs/extending.md work as they are printed, and the README's rows are the study's."""

import importlib
import re
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from conftest import ROOT

from paft.config.checks import TYPES
from paft.merge.methods import METHODS
from paft.objectives import OBJECTIVES
from paft.objectives.objective import PairLogps

BLOCKS = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "docs/extending.md").read_text(encoding="utf-8"), re.M | re.S
)


@pytest.fixture
def entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The page's merge method and objective as modules; the registries are put back afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    chosen = [block for block in BLOCKS if "(Method," in block or "(Objective," in block]
    assert len(chosen) == 2
    with patch.dict(METHODS), patch.dict(OBJECTIVES), patch.dict(TYPES):
        names = [f"printed_entry_{number}" for number in range(len(chosen))]
        for name, block in zip(names, chosen, strict=True):
            (tmp_path / f"{name}.py").write_text(block, encoding="utf-8")
        importlib.invalidate_caches()
        for name in names:
            sys.modules.pop(name, None)  # an earlier test's: importing it anew registers the entry
            importlib.import_module(name)
        yield


def test_merge_method_of_the_page_merges(entries):
    method = METHODS["larger"](factor=2.0)
    first, second = np.array([1, -3, 0], np.float32), np.array([2, -1, 0], np.float32)

    merged = method.merge_deltas([first, second], np.zeros(3, np.float32))

    assert merged.dtype == np.float32 and merged.tolist() == [4.0, -6.0, 0.0]


def test_objective_of_the_page_has_its_loss(entries):
    pairs = PairLogps(*map(torch.tensor, ([-1.0, -4.0], [-3.0, -4.0], [2.0, 2.0], [2.0, 2.0])))

    losses = OBJECTIVES["slic"](margin=2.5).losses(pairs)

    assert losses.tolist() == pytest.approx([0.5, 2.5])


def test_rows_of_the_readme_are_rows_of_the_study():
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    scores = [line.partition("|")[2].partition("|")[2] for line in readme if "±" in line and line[0] == "|"]
    study = (ROOT / "docs/study.md").read_text(encoding="utf-8")

    assert len(scores) == 8
    assert all(f"|{score}\n" in study for score in scores)
