"""A merge method and an objective that only their own class knows of, in every view of the report."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.image import imread
from synthetic_store import PAFT, fill, with_lambda

from paft.config import Paradigm, PreferenceConfig
from paft.config.merge import MergeConfig
from paft.merge.methods import METHODS, Ties
from paft.objectives import OBJECTIVES
from paft.report.build import Report, build_report
from paft.report.compare import compare
from paft.report.labels import labels, method, section
from paft.report.render import markdown
from paft.report.study_plots import heat_map
from paft.report.style import merge_colour, objective_colour
from paft.report.table import row, rows
from paft.report.tables import cells_table
from paft.report.terminal import print_table


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Every paradigm with a method `toy_merge` and an objective `toy` that has no beta, beside TIES and DPO."""

    @dataclass
    class ToyMerge(MergeConfig, name="toy_merge", title="Toy Merge", source="nobody 2026"):
        strength: float = 0.5

    @dataclass
    class ToyObjective(PreferenceConfig, name="toy", title="Toy-PO", source="nobody 2026"):
        margin: float = 1.0

    root = tmp_path_factory.mktemp("toys") / "stages"
    sparse = [with_lambda(PAFT, weight) for weight in (0.0, 1e-4)]
    toys = [replace(c, merge=ToyMerge(), preference=ToyObjective()) for c in sparse]
    cells = [*sparse, *toys, *(replace(c, merge=Ties()) for c in toys)]
    cells += [replace(c, paradigm=p) for c in (sparse[1], toys[1]) for p in Paradigm]
    fill(root, cells)
    yield root
    del METHODS["toy_merge"], OBJECTIVES["toy"]


def test_its_rows_have_names_titles_and_options(store):
    table = rows(store)

    (found,) = [r for r in table if r.merge == "toy_merge" and r.weight == 1e-4]

    assert (method(found), section(found)) == ("Toy Merge", "PAFT (SFT_sparse+Toy-PO)")
    assert (found["merge.strength"], found["preference.margin"]) == (0.5, 1.0)
    assert found["preference_beta"] is None
    assert {method(r) for r in table if r.preference == "toy" and not r.merged} == {
        *("SFT_sparse+Toy-PO", "Toy-PO+SFT_sparse", "SFT and Toy-PO", "SFT_sparse+Toy-PO, ExPO"),
        "Toy-PO-alone",
    }
    assert "TIES Toy-PO" in labels(table)


def test_page_pictures_and_tables_show_it(store, tmp_path, capsys):
    cells = build_report(store, tmp_path)
    print_table(cells)

    page, printed = (tmp_path / "index.html").read_text(), capsys.readouterr().out
    for text in (page.replace("<sub>sparse</sub>", "_sparse"), printed, markdown(cells_table(cells))):
        assert "Toy Merge" in text and "PAFT (SFT_sparse+Toy-PO)" in text and "Toy-PO-alone" in text
    assert all(imread(p).std() > 0.02 for p in tmp_path.glob("*.png"))
    assert {"1-lambda_by_merge.png", "1-pareto.png", "1-sparsity.png"} <= {
        p.name for p in tmp_path.glob("*.png")
    }


def test_heat_map_has_its_row_and_its_panel(store):
    figure = heat_map(Report(store).cells)

    assert [ax.get_title() for ax in figure.axes] == ["SFT + DPO", "SFT + Toy-PO"]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["TIES", "Toy Merge"]


def test_claims_are_tested_with_it(store, tmp_path):
    build_report(store, tmp_path)

    claims = pd.read_csv(tmp_path / "claims.csv")

    assert set(claims["preference"].dropna()) == {"dpo", "toy", "dpo, orpo"}


def test_cells_are_selected_by_its_options(store):
    found = compare(store, "merge.strength=0.5,lambda=1e-4", "merge=ties,preference=toy,lambda=1e-4")

    assert len(found.pairs) == 1


def test_every_method_and_objective_has_a_colour_of_its_own(store):
    assert len({*map(merge_colour, METHODS)}) == len(METHODS)
    assert len({*map(objective_colour, OBJECTIVES)}) == len(OBJECTIVES)


def test_types_that_this_code_does_not_have_are_shown_by_their_name(store, tmp_path):
    (stage,) = fill(tmp_path, [PAFT])
    folder = tmp_path / "evaluate" / stage.key
    text = (folder / "stage.json").read_text()
    (folder / "stage.json").write_text(text.replace('"Ties"', '"Soup"').replace('"DPO"', '"KTO"'))

    found = row(folder)

    assert (found.merge, method(found), section(found)) == ("Soup", "Soup", "Parallel SFT+KTO")
    assert len(build_report(tmp_path, tmp_path / "report")) == 1
