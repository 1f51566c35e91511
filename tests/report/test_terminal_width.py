"""Tables in terminals of any width: what is printed against every number of the table."""

from io import StringIO

import pytest
from rich.console import Console

from paft.report.render import show_table
from paft.report.tables import Entry, Head, Line, Section, Table

COLUMNS = ("tool call", "honesty", "mmlu dev", "mmlu dev bits ↓", "average")
NUMBERS = [[(f"{r}{c}.75", f"1{c}.{r}1") for c in range(1, 6)] for r in range(1, 4)]
NAMES = ("TIES", "Task Arithmetic", "Breadcrumbs density=0.25")


def printed(width: int) -> list[str]:
    head = [Head("method", numeric=False), *map(Head, COLUMNS)]
    lines = [
        Line([Entry(name), *(Entry(value, error) for value, error in numbers)])
        for name, numbers in zip(NAMES, NUMBERS, strict=True)
    ]
    out = StringIO()
    show_table(Console(file=out, width=width), Table(head, [Section("PAFT (SFT_sparse+DPO)", lines)]))
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [30, 60, 80, 100, 160])
def test_no_number_is_cut_however_narrow_the_terminal(width: int) -> None:
    lines = printed(width)
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    for place in range(len(COLUMNS)):
        column = " ".join(row[place + 1] for row in cells).split()
        assert column == [part for row in NUMBERS for part in (row[place][0], "±", row[place][1])]
    assert all(len(line.rstrip()) <= width for line in lines) or width < 80


def test_errors_stand_beside_their_values_where_there_is_room() -> None:
    assert any("11.75 ± 11.11" in line for line in printed(160))
    assert not any("11.75 ±" in line for line in printed(60))
