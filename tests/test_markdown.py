"""Tables of Markdown files are those of the CSV files beside them, in this project's own pages too."""

import csv
import dataclasses
import re
from pathlib import Path

import pytest
from synthetic_store import fill, grid

from paft.config import MergeConfig, PreferenceConfig
from paft.merge.methods import METHODS, Ties
from paft.objectives import OBJECTIVES
from paft.report.__main__ import main
from paft.report.build import build_report
from paft.report.markdown import ENTRIES, TABLE, filled

ROOT = Path(__file__).parents[1]
PAGES = [
    p
    for p in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if TABLE.search(p.read_text()) or ENTRIES.search(p.read_text())
]
KINDS = {"paper": "cells.csv", "claims": "claims.csv", "time": "stages.csv"}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    fill(folder / "stages", grid(merges=[Ties()], lambdas=[0.0, 1e-4]))
    build_report(folder / "stages", folder)
    return folder


def page(report: Path, *marks: str) -> Path:
    path = report / "page.md"
    path.write_text(
        "# Page\n\n" + "\n\n".join(f"<!-- {mark} -->\nold\n<!-- end -->" for mark in marks) + "\nlast\n"
    )
    return path


def rows(report: Path, name: str) -> list[dict[str, str]]:
    with (report / name).open(newline="") as file:
        return list(csv.DictReader(file))


def table(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_tables_of_the_docs_equal_their_csv(path):
    assert filled(path) == path.read_text()


@pytest.mark.parametrize(
    ("page", "group", "registry", "shared"),
    [
        ("merging.md", "merge", METHODS, MergeConfig),
        ("objectives.md", "preference", OBJECTIVES, PreferenceConfig),
    ],
)
def test_every_choice_stands_in_its_page_with_its_own_options(page, group, registry, shared):
    """Read from the page as it is in the repository: an entry that is added, renamed or changed makes it stale."""
    lines = {
        line[0]: line for line in table((ROOT / "docs" / page).read_text()) if line[0].startswith(f"{group}=")
    }
    assert [*lines] == [f"{group}={name}" for name in registry]
    common = {f.name for f in dataclasses.fields(shared)}
    written_otherwise = {"sft_weight", "preference_weight"} if group == "merge" else set()  # as `weights`
    for name, entry in registry.items():
        _, title, _, options, looks_at, source = lines[f"{group}={name}"]
        assert (title, source) == (entry.title, entry.source)
        own = {f.name for f in dataclasses.fields(entry)} - common - written_otherwise
        assert set(options.split(", ")) - {"–"} == own
        needs = getattr(entry, "needs", None)
        assert (needs.value if needs else "") in looks_at


def test_paper_table_has_the_numbers_of_the_csv(report):
    head, _, *body = table(filled(page(report, "paper cells.csv")))
    expected = rows(report, "cells.csv")
    assert len(body) == len(expected)
    place = head.index("average")
    for cells, row in zip(body, expected, strict=True):
        value, error = 100 * float(row["average"]), 100 * float(row["average_stderr"])
        assert cells[place] == f"{value:.2f} ± {error:.2f}"


def test_claims_table_has_every_test(report):
    _, _, *body = table(filled(page(report, "claims claims.csv")))
    expected = rows(report, "claims.csv")
    assert [cells[0] for cells in body] == [r["claim"] for r in expected]
    assert [cells[3].strip("*") for cells in body] == [r["verdict"] for r in expected]


def test_cells_are_chosen_by_conditions(report):
    text = filled(page(report, "cells cells.csv: lambda, merge, average | paradigm=parallel; lambda=1e-4"))
    _, _, *body = table(text)
    wanted = [r for r in rows(report, "cells.csv") if r["paradigm"] == "parallel" and r["lambda"] == "0.0001"]
    assert [c[:2] for c in body] == [["1e-4", r["merge"]] for r in wanted]


def test_time_adds_up(report):
    _, _, *body = table(filled(page(report, "time stages.csv")))
    own = rows(report, "stages.csv")
    assert int(body[-1][1]) == len(own) == sum(int(cells[1]) for cells in body[:-1])
    assert float(body[-1][2]) == pytest.approx(sum(float(r["seconds"]) for r in own) / 60, abs=0.05)


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ("paper absent.csv", r"page\.md: <!-- paper absent\.csv --> cannot be filled: .*absent\.csv"),
        ("cells cells.csv: lamda", "there is no column lamda"),
    ],
)
def test_a_table_that_cannot_be_made_is_named(report, mark, message):
    with pytest.raises(ValueError, match=message):
        filled(page(report, mark))


def test_check_tells_a_changed_number(report, capsys):
    path = page(report, *(f"{kind} {name}" for kind, name in KINDS.items()))
    main(["docs", str(path)])
    main(["docs", str(path), "--check"])
    assert path.read_text().endswith("<!-- end -->\nlast\n")
    path.write_text(re.sub(r"\d\.\d", "9.9", path.read_text(), count=1))
    with pytest.raises(SystemExit) as stopped:
        main(["docs", str(path), "--check"])
    assert stopped.value.code == 2 and "are not what their files hold" in capsys.readouterr().err
