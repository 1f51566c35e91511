"""Reading every kind of source, and how bad files and rows are reported."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paft.config import BadRows, DemoSource, FileSource, HubSource, RowFormat, Skill
from paft.data.sources import conversations, preference_pairs

SHARED = Path(__file__).resolve().parents[1] / "../shared/data"
COMMIT = "0" * 40
ROWS = [
    {"messages": [{"role": "user", "content": f"Q{at}"}, {"role": "assistant", "content": f"A{at}"}]}
    for at in range(3)
]


def write_jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_json(path: Path, rows: list) -> Path:
    path.write_text(json.dumps(rows))
    return path


def write_json_data(path: Path, rows: list) -> Path:
    path.write_text(json.dumps({"data": rows}))
    return path


def write_csv(path: Path, rows: list) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(
            {k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in rows
        )
    return path


def write_parquet(path: Path, rows: list) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.jsonl", write_jsonl),
        ("a.json", write_json),
        ("b.json", write_json_data),
        ("a.csv", write_csv),
        ("a.parquet", write_parquet),
    ],
)
def test_every_file_type_gives_the_same_rows(tmp_path: Path, name: str, write: Callable) -> None:
    path = write(tmp_path / name, ROWS)
    rows = list(conversations(FileSource(path=str(path)), "train"))
    assert [row.messages for _, row in rows] == [row["messages"] for row in ROWS]
    assert [location for location, _ in rows] == [f"{path}, row {number}" for number in (1, 2, 3)]


def test_csv_text_that_looks_like_a_list_stays_text(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [{"prompt": "[1, 2]", "completion": "[3]"}])
    [(_, row)] = conversations(FileSource(path=str(path)), "train")
    assert [message["content"] for message in row.messages] == ["[1, 2]", "[3]"]


def write_csv_repr(path: Path, rows: list) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.csv", write_csv_repr),
        (
            "a.jsonl",
            lambda path, rows: write_jsonl(path, [{k: json.dumps(v) for k, v in r.items()} for r in rows]),
        ),
        ("a.jsonl", lambda path, rows: write_jsonl(path, [{k: repr(v) for k, v in r.items()} for r in rows])),
        (
            "a.parquet",
            lambda path, rows: write_parquet(path, [{k: json.dumps(v) for k, v in r.items()} for r in rows]),
        ),
    ],
    ids=["csv of python", "json in jsonl", "python in jsonl", "json in parquet"],
)
def test_message_lists_written_as_text_become_messages(tmp_path: Path, name: str, write: Callable) -> None:
    rows = list(conversations(FileSource(path=str(write(tmp_path / name, ROWS))), "train"))
    assert [row.messages for _, row in rows] == [row["messages"] for row in ROWS]


def test_nulls_that_parquet_fills_in_say_nothing(tmp_path: Path) -> None:
    calls = [{"name": "weather", "arguments": {"at": "Oslo"}}, {"name": "sum", "arguments": {"of": [1, 2]}}]
    plain = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    weighted = [plain[0], plain[1] | {"weight": 0.0}, plain[0], plain[1] | {"weight": 1.0}]
    called = [plain[0], plain[1] | {"tool_calls": calls}]
    rows = [{"messages": messages} for messages in (plain, weighted, called)]
    found = conversations(FileSource(path=str(write_parquet(tmp_path / "a.parquet", rows))), "train")
    in_envelopes = [{"type": "function", "function": call} for call in calls]
    assert [row.messages for _, row in found] == [
        plain,
        [*plain[:1], plain[1] | {"train": False}, *plain],
        [plain[0], plain[1] | {"tool_calls": in_envelopes}],
    ]


def test_fields_that_are_not_used_are_counted_over_the_good_rows(tmp_path: Path) -> None:
    extra = [{"id": 1, "source": "web"}, {"id": 2}, {"id": 3, "label": False}]
    rows = [row | more for row, more in zip(ROWS, extra, strict=True)]
    source = FileSource(path=str(write_jsonl(tmp_path / "a.jsonl", rows)), bad_rows=BadRows.drop)
    assert conversations(source, "train").ignored == {"id": 2, "source": 1}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            b"prompt,completion,prompt\na,b,c\n",
            "a.csv has two columns 'prompt', of which a row keeps one",
        ),
        (
            "a.jsonl",
            b'{"prompt": "a", "completion": "b", "prompt": "c"}\n',
            "row 1: field 'prompt' stands twice",
        ),
        (
            "a.json",
            b'{"data": [{"prompt": "a", "completion": "b"}], "system": "s"}',
            "a.json: field 'system' holds a part of the prompt",
        ),
        (
            "a.json",
            b'[{"prompt": "a", "completion": "b", "prompt": "c"}]',
            "a.json.* field 'prompt' stands twice",
        ),
    ],
)
def test_a_field_that_would_vanish_while_reading_is_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        conversations(FileSource(path=str(tmp_path / name)), "train")


def test_a_parquet_column_that_stands_twice_is_refused(tmp_path: Path) -> None:
    columns = [pa.array([text]) for text in ("a", "b", "c")]
    pq.write_table(pa.table(columns, ["prompt", "completion", "prompt"]), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet has two columns 'prompt'"):
        conversations(FileSource(path=str(tmp_path / "a.parquet")), "train")


@pytest.mark.parametrize("row_format", [RowFormat.auto, RowFormat.gsm8k])
def test_hub_source_reads_a_split_of_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row_format: RowFormat
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    repo = tmp_path / "repo"
    (repo / "main").mkdir(parents=True)
    for split in ("train", "test"):
        write_parquet(repo / "main" / f"{split}-00000.parquet", [{"question": f"{split}?", "answer": "yes"}])
    source = HubSource(
        repo=str(repo), revision=COMMIT, data_dir="main", validation_split="test", format=row_format
    )
    [(location, row)] = conversations(source, "validation")
    assert location == f"{repo} test, row 1"
    assert row.messages[0]["content"] == "test?"


def test_demo_source_yields_both_kinds() -> None:
    [(location, row), *_] = conversations(DemoSource(skill=Skill.tool_call, num_rows=6), "train")
    assert location == "demo tool_call train, row 1" and row.messages[1]["content"].startswith('{"tool":')
    assert len(preference_pairs(DemoSource(skill=Skill.honesty, num_rows=6), "validation")) == 64


def test_columns_of_the_embedded_data_are_not_listed() -> None:
    assert preference_pairs(DemoSource(skill=Skill.honesty, num_rows=6), "train").ignored == {}


def test_max_rows_takes_the_first_rows(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    assert len(conversations(FileSource(path=str(path), max_rows=2), "train")) == 2


def test_bad_rows_are_reported_together_with_file_row_and_field(tmp_path: Path) -> None:
    good = json.dumps(ROWS[0])
    empty = '{"messages": [{"role": "user", "content": ""}]}'
    path = tmp_path / "mixed.jsonl"
    path.write_text(f'{good}\n\n{{"messages": \n{good}\n[1]\n{empty}\n')
    with pytest.raises(ValueError) as caught:
        conversations(FileSource(path=str(path)), "train")
    assert str(caught.value).splitlines() == [
        "3 row(s) cannot be used; correct them, remove them or set bad_rows=drop:",
        f"{path}, row 3: broken JSON at column 13: Expecting value",
        f"{path}, row 5: a row must be an object with named columns, got list",
        f"{path}, row 6: field 'messages[0].content' is empty",
    ]


def test_twenty_bad_rows_are_shown_and_all_are_counted(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "bad.jsonl", [ROWS[0]] + [{"messages": []}] * 57)
    with pytest.raises(ValueError) as caught:
        conversations(FileSource(path=str(path)), "train")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("57 row(s)") and lines[-1] == "... and 37 more" and len(lines) == 22


def test_a_row_that_is_not_utf_8_is_named_with_its_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"messages": "\xff"}\n')
    with pytest.raises(ValueError, match=r"a.jsonl, row 1: byte 15 is not UTF-8"):
        conversations(FileSource(path=str(path)), "train")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.txt",
            "x",
            r"a.txt must end in one of .jsonl, .json, .csv, .parquet, .arrow, each also with .gz, .bz2, .zst behind",
        ),
        ("a.json", "{", "a.json is not valid JSON"),
        ("a.json", '{"rows": []}', "a.json must hold a list of rows"),
        ("a.jsonl", "\n", "train part of .*a.jsonl holds no rows that can be read"),
        ("a.parquet", "PAR?", "a.parquet is not a readable Parquet file"),
        ("a.csv", "question,answer\n1,2,3\n", "a.csv, row 1: more cells than the header"),
        ("a.csv", 'question,answer\n"1,2\n', "a.csv, line"),
        ("a.jsonl", '{"text": "x"}\n', r"a.jsonl, row 1: format=auto finds no conversations in the columns"),
    ],
)
def test_unusable_file_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        conversations(FileSource(path=str(tmp_path / name)), "train")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no file .*gone.jsonl"):
        conversations(FileSource(path=str(tmp_path / "gone.jsonl")), "train")


def test_missing_validation_part_says_which_key_to_set(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(ValueError, match="validation_path"):
        conversations(FileSource(path=str(path)), "validation")


def test_importing_sources_loads_nothing_heavy() -> None:
    heavy = {"torch", "datasets", "pandas", "transformers"}
    code = f"import sys, paft.data.sources; print({heavy} & set(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "set()\n"


@pytest.mark.skipif(not SHARED.is_dir(), reason="development data is absent")
def test_development_data_parses_completely() -> None:
    gsm8k = conversations(FileSource(path=str(SHARED / "gsm8k_train.jsonl")), "train")
    harmless = preference_pairs(FileSource(path=str(SHARED / "hh_harmless_train.jsonl")), "train")
    assert (len(gsm8k), len(harmless)) == (7473, 1803)
