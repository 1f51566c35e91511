"""Training files of any bytes: rows come out typed and can be tokenised, or the place and the fault are named."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile import attempt, bounded_memory, cases, damage, damaged, ground, text, value
from hypothesis import example, given
from hypothesis import strategies as st

from paft.chat.conversation import Conversation, PreferencePair
from paft.chat.encode import encode_conversation, encode_pair
from paft.chat.template import template_text
from paft.chat.tokens import IGNORE
from paft.config import BadRows, FileSource, RowFormat, Template
from paft.data.rows import (
    conversation_format,
    ignored_fields,
    parse_conversation,
    parse_preference_pair,
    preference_format,
)
from paft.data.sources import conversations, preference_pairs
from paft.model.base import byte_tokenizer

pytestmark = pytest.mark.fuzz

TOKENIZER = byte_tokenizer()
TOKENIZER.chat_template = template_text(Template.chatml, TOKENIZER)

role = st.sampled_from(["system", "user", "assistant", "tool", "", "User"]) | value
words = (
    st.sampled_from(["hi", " ", "", "\0", "\ud800", "<|im_end|>", "a<|im_start|>b", "\n\nHuman: x"]) | text
)
flag = st.sampled_from([0, 1, 0.5, None, True, False, "false", ""]) | value
extra = {"weight": flag, "train": flag, "loss": flag, "id": value, "tool_calls": st.none() | value}
message = st.fixed_dictionaries({}, optional={"role": role, "content": words | value, "name": value} | extra)
plain_turns = st.lists(st.tuples(words, words), min_size=1, max_size=3).map(
    lambda pairs: [
        {"role": role, "content": content}
        for pair in pairs
        for role, content in zip(("user", "assistant"), pair, strict=True)
    ]
)
transcript = st.lists(st.tuples(st.sampled_from(["Human", "Assistant"]), words), max_size=4).map(
    lambda turns: "".join(f"\n\n{who}: {said}" for who, said in turns)
)
flagged_turns = st.tuples(plain_turns, st.lists(flag, min_size=6, max_size=6)).map(
    lambda found: [
        said | {"weight": weight} if said["role"] == "assistant" else said
        for said, weight in zip(*found, strict=False)
    ]
)
written = st.tuples(st.sampled_from([repr, json.dumps, str.format]), plain_turns | flagged_turns | value).map(
    lambda found: repr(found[1])[:40] if found[0] is str.format else found[0](found[1])
)
cell = words | st.lists(message, max_size=4) | plain_turns | flagged_turns | written | transcript | value
COLUMNS = ("messages", "prompt", "completion", "question", "answer", "chosen", "rejected")
row = st.one_of(
    st.fixed_dictionaries({}, optional={name: cell for name in COLUMNS} | {"other": value}),
    st.fixed_dictionaries({"messages": plain_turns | flagged_turns | written}),
    st.fixed_dictionaries(
        {"prompt": words | transcript, "completion": words},
        optional={"label": flag, "weight": flag, "tools": value, "system": words | value, "id": value},
    ),
    st.fixed_dictionaries({"chosen": transcript, "rejected": transcript}),
    st.fixed_dictionaries({"prompt": words, "chosen": words, "rejected": words}),
    value,
)
DEEP = b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
HUGE = b'{"messages": ' + b"9" * 5_000 + b"}"
line = st.one_of(
    row.map(lambda found: json.dumps(found).encode()),
    row.map(lambda found: json.dumps(found, ensure_ascii=False).encode("utf-8", "surrogatepass")),
    row.map(lambda found: json.dumps(found).encode("utf-16")),
    st.binary(max_size=60),
    st.sampled_from(
        [DEEP, HUGE, b"\xef\xbb\xbf{}", b"\0", b"{'a': 1}", b'{"a": NaN}', b"\x1a", b'{"a": 1e999}']
    ),
)
content = st.builds(
    lambda bom, end, lines: bom + end.join(lines),
    st.sampled_from([b"", b"", b"\xef\xbb\xbf", b"\xff\xfe"]),
    st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\r"]),
    st.lists(line, max_size=6),
)
bad_rows = st.sampled_from(BadRows)


def usable(path: Path, handling: BadRows) -> None:
    """Every row of either kind that is accepted can be tokenised, and is the same when it is read again."""
    source = FileSource(path=str(path), bad_rows=handling)
    for found in (
        attempt(lambda: conversations(source, "train"), path),
        attempt(lambda: preference_pairs(source, "train"), path),
    ):
        rows = list(found) if found is not None else []
        assert found is None or len(rows) == len(found)
        for _, typed in rows:
            tokens(typed)


def tokens(typed: Conversation | PreferencePair) -> None:
    if isinstance(typed, PreferencePair):
        pair = encode_pair(TOKENIZER, typed)
        assert pair.prompt_ids and pair.chosen_ids and pair.rejected_ids
        return
    encoded = encode_conversation(TOKENIZER, typed.messages)
    assert len(encoded.input_ids) == len(encoded.labels)
    assert all(label in (IGNORE, token) for token, label in zip(*encoded, strict=True))
    assert encoded.labels[0] == IGNORE != encoded.labels[-1]


@cases(2.0)
@given(row)
def test_a_row_is_typed_and_tokenised_or_its_field_is_named(raw: Any) -> None:
    for detect, parse in (
        (conversation_format, parse_conversation),
        (preference_format, parse_preference_pair),
    ):
        for wanted in RowFormat:
            found = attempt(lambda wanted=wanted, detect=detect: detect(raw, wanted))  # type: ignore[misc]
            if found is not None:
                typed = attempt(lambda found=found, parse=parse: parse(raw, found), "field")  # type: ignore[misc]
                if typed is not None:
                    tokens(typed)
                    assert all(isinstance(name, str) for name in ignored_fields(raw, found))


@cases(2.0)
@given(content, bad_rows)
@example(DEEP, BadRows.error)
@example(HUGE, BadRows.drop)
@example(b'{"question": "\\ud800", "answer": "x"}', BadRows.error)
def test_jsonl_of_any_bytes(raw: bytes, handling: BadRows) -> None:
    with ground() as here, bounded_memory():
        usable(here.folder("data", **{"rows.jsonl": raw}) / "rows.jsonl", handling)


@cases(1.0)
@given(st.lists(row, max_size=4).map(lambda rows: json.dumps(rows).encode()) | line | content, bad_rows)
@example(b"[" * 100_000 + b"]" * 100_000, BadRows.error)
def test_json_of_any_bytes(raw: bytes, handling: BadRows) -> None:
    with ground() as here, bounded_memory():
        usable(here.folder("data", **{"rows.json": raw}) / "rows.json", handling)


@st.composite
def table(draw: st.DrawFn) -> bytes:
    """A CSV file with the columns of some format, its cells anything a cell can hold."""
    columns = draw(st.lists(st.sampled_from(COLUMNS) | text, min_size=1, max_size=4))
    cells = words | cell.map(json.dumps) | st.just("[" * 50_000 + "]" * 50_000)
    lines = draw(st.lists(st.lists(cells, max_size=5), max_size=4))
    out = io.StringIO()
    csv.writer(out).writerows([columns, *lines])
    return out.getvalue().encode("utf-8", "surrogatepass")


@cases(1.0)
@given(table() | st.binary(max_size=80) | content, bad_rows)
def test_csv_of_any_bytes(raw: bytes, handling: BadRows) -> None:
    with ground() as here, bounded_memory():
        usable(here.folder("data", **{"rows.csv": raw}) / "rows.csv", handling)


COLUMN = st.sampled_from(
    [
        pa.array(["hi", None]),
        pa.array([b"\xff", b""]),
        pa.array([1, 2**62]),
        pa.array([[], [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]]),
        pa.array([[{"role": 1, "content": None}], None]),
        pa.array([0, 2**62], pa.timestamp("us")),
        pa.array(["a", "a"]).dictionary_encode(),
    ]
)


@st.composite
def parquet(draw: st.DrawFn) -> bytes:
    columns = draw(st.dictionaries(st.sampled_from(COLUMNS), COLUMN, max_size=4))
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, compression=draw(st.sampled_from(["none", "snappy"])))
    content = out.getvalue()
    for how in draw(st.lists(damage, max_size=2)):
        content = damaged(content, how)
    return content


@cases(1.0)
@given(parquet(), bad_rows)
def test_parquet_of_any_bytes(raw: bytes, handling: BadRows) -> None:
    with ground() as here, bounded_memory():
        usable(here.folder("data", **{"rows.parquet": raw}) / "rows.parquet", handling)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".bin", ".pkl", "", ".jsonl.gz"])
def test_a_pickle_is_no_data_file(suffix: str) -> None:
    with ground() as here:
        path = here.folder("data", **{f"rows{suffix}": here.pickle}) / f"rows{suffix}"
        assert attempt(lambda: conversations(FileSource(path=str(path)), "train"), path) is None
