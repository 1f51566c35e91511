"""What the stored type or the rank of a merge cannot hold is said where it is much, with the remedy."""

import pytest
from synthetic_store import PAFT, fill, with_lambda

from paft.files.jsonfile import read_object, write_json
from paft.report.page import warnings
from paft.report.row import Row
from paft.report.stored import not_stored
from paft.report.table import rows
from paft.report.terminal import print_table


@pytest.fixture
def table(tmp_path) -> list[Row]:
    """Two merges; the second lost most of its changes."""
    targets = fill(tmp_path, [with_lambda(PAFT, weight) for weight in (1e-4, 1e-3)])
    file = tmp_path / "evaluate" / targets[1].key / "merge.json"
    write_json(file, read_object(file) | {"rounded_back": 0.631})
    return rows(tmp_path)


def test_share_that_the_stored_type_loses_is_said_with_its_remedy(table, capsys):
    (said,) = not_stored(table)

    assert "up to 63.1 %" in said and "merge.dtype=float32 evaluate.dtype=float32" in said
    assert said in warnings(table)
    print_table(table)
    assert said in capsys.readouterr().out


def test_little_that_is_lost_is_not_said(table):
    assert not_stored([row for row in table if row["rounded_back"] < 0.1]) == []


def test_delta_that_a_rank_cannot_hold_is_said(table):
    (said,) = not_stored([table[0] | {"rounded_back": None, "adapter_error": 0.25}])

    assert "lack up to 25.0 %" in said and "merge.rank" in said
