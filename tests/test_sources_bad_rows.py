"""bad_rows=drop leaves bad rows out and counts them; the default refuses."""

import json

import pytest

from paft.config import BadRows, FileSource
from paft.data.sources import conversations


@pytest.fixture
def path(tmp_path):
    good = {"prompt": "2+2?", "completion": "4"}
    lines = [json.dumps(good), json.dumps({"prompt": "empty", "completion": ""}), "{broken", json.dumps(good)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(lines))
    return file


def test_drop_counts_what_it_leaves_out(path):
    rows = conversations(FileSource(path=str(path), bad_rows=BadRows.drop), "train")
    assert (len(rows), rows.num_bad) == (2, 2)
    assert len(list(rows)) == 2


def test_default_names_rows_and_the_way_out(path):
    with pytest.raises(ValueError, match=r"(?s)bad_rows=drop.*row 2.*completion.*row 3"):
        conversations(FileSource(path=str(path)), "train")
