"""Training files of any bytes: rows come out typed and can be tokenised, or the place and the fault are named."""

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chat_tokenizers import TEMPLATES
from hostile import attempt, bounded_memory, cases, damage, damaged, ground, text, value
from hypothesis import example, given
from hypothesis import strategies as st

from paft.chat.conversation import PreferencePair, TrainingRow, UnpairedRow, beside_text, messages_of
from paft.chat.encode import encode_conversation, encode_pair
from paft.chat.template import template_text
from paft.chat.tokens import IGNORE
from paft.config import BadRows, FileSource, RowFormat, Template
from paft.config.formats import CONVERSATIONS, FIELDS, PAIRS, UNPAIRED
from paft.data.rows import (
    conversation_format,
    ignored_fields,
    parse_conversation,
    parse_preference_pair,
    parse_unpaired,
    preference_format,
    unpaired_format,
)
from paft.data.sources import conversations, preference_pairs, unpaired_rows
from paft.model.base import byte_tokenizer

pytestmark = pytest.mark.fuzz

TOKENIZER = byte_tokenizer()
TOKENIZER.chat_template = template_text(Template.chatml, TOKENIZER)
TOOL_TOKENIZER = byte_tokenizer()
TOOL_TOKENIZER.chat_template = TEMPLATES["qwen_tools"]

role = st.sampled_from(["system", "user", "assistant", "tool", "", "User"]) | value
speaker = st.sampled_from(["human", "gpt", "system", "function_call", "observation", "bot"]) | value
words = (
    st.sampled_from(["hi", " ", "", "\0", "\ud800", "<|im_end|>", "a<|im_start|>b", "\n\nHuman: x"]) | text
)
flag = st.sampled_from([0, 1, 0.5, None, True, False, "false", ""]) | value
function = st.fixed_dictionaries(
    {},
    optional={"name": words | value, "arguments": value | words | st.dictionaries(words, value, max_size=2)},
)
call = (
    function
    | st.fixed_dictionaries({"type": st.just("function") | value, "function": function | value})
    | value
)
calls = st.lists(call, max_size=2) | call | st.lists(call, max_size=2).map(json.dumps)
part = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image", "audio"]) | value},
    optional={"text": words | value, "value": words | value, "loss_weight": flag, "image": value},
)
thoughts = dict.fromkeys(("reasoning", "reasoning_content", "thinking"), words | value)
extra = {
    "weight": flag,
    "train": flag,
    "loss": flag,
    "id": value,
    "tool_calls": st.none() | calls,
    **thoughts,
}
said = words | value | st.lists(part | value, max_size=3)
message = st.fixed_dictionaries({}, optional={"role": role, "content": said, "name": value} | extra)
turn = st.fixed_dictionaries({}, optional={"from": speaker, "value": words | calls | value, "loss": flag})
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
called_turns = st.tuples(calls, words | value, flag, words | value).map(
    lambda found: [
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": found[0],
            "weight": found[2],
            "thinking": found[3],
        },
        {"role": "tool", "content": found[1]},
        {"role": "assistant", "content": "yes"},
    ]
)
parted_turns = st.lists(part, max_size=3).map(
    lambda parts: [{"role": "user", "content": parts}, {"role": "assistant", "content": parts}]
)
shared_turns = st.tuples(words, calls, words | value).map(
    lambda found: [
        {"from": "human", "value": found[0]},
        {"from": "function_call", "value": found[1]},
        {"from": "observation", "value": found[2]},
        {"from": "gpt", "value": "yes"},
    ]
)
messages = plain_turns | flagged_turns | called_turns | parted_turns
tools = st.lists(st.fixed_dictionaries({"function": function}) | function | value, max_size=2)
tools = tools | tools.map(json.dumps) | value | words
cell = (
    words | st.lists(message, max_size=4) | st.lists(turn, max_size=4) | turn | messages | shared_turns | written
    | transcript | tools | value
)  # fmt: skip
COLUMNS = tuple(FIELDS)
row = st.one_of(
    st.fixed_dictionaries({}, optional={name: cell for name in COLUMNS} | {"other": value}),
    st.fixed_dictionaries({"messages": messages | written}, optional={"tools": tools, "label": flag}),
    st.fixed_dictionaries(
        {"conversations": shared_turns | st.lists(turn, max_size=4) | plain_turns},
        optional={"tools": tools, "system": words | value, "chosen": turn, "rejected": turn, "label": flag},
    ),
    st.fixed_dictionaries(
        {"instruction": words | value},
        optional={
            "input": words | value,
            "output": words,
            "history": st.lists(st.lists(words | value, max_size=3), max_size=2) | value,
            "system": words | value,
            "chosen": words,
            "rejected": words,
            "label": flag,
        },
    ),
    st.fixed_dictionaries(
        {"prompt": words | transcript, "completion": words},
        optional={"label": flag, "weight": flag, "tools": tools, "system": words | value, "id": value},
    ),
    st.fixed_dictionaries({"chosen": transcript, "rejected": transcript}),
    st.fixed_dictionaries({"chosen_messages": messages, "rejected_messages": messages}),
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
    """Every row of each kind that is accepted can be tokenised, and is the same when it is read again."""
    source = FileSource(path=str(path), bad_rows=handling)
    for read in (conversations, preference_pairs, unpaired_rows):
        found = attempt(lambda read=read: read(source, "train"), path)  # type: ignore[misc]
        rows = list(found) if found is not None else []
        assert found is None or len(rows) == len(found)
        for _, typed in rows:
            tokens(typed)


def tokens(typed: TrainingRow) -> None:
    """A row of texts alone becomes tokens; one with tools or thoughts does, or the template's refusal is worded."""
    if beside_text(messages_of(typed), typed.tools):
        attempt(lambda: tokens_in(TOOL_TOKENIZER, typed))
        attempt(lambda: tokens_in(TOKENIZER, typed))
    else:
        tokens_in(TOKENIZER, typed)


def tokens_in(tokenizer: Any, typed: TrainingRow) -> None:
    if isinstance(typed, PreferencePair):
        pair = encode_pair(tokenizer, typed)
        assert pair.prompt_ids and pair.chosen_ids and pair.rejected_ids
        return
    encoded = encode_conversation(tokenizer, messages_of(typed), tools=typed.tools)
    assert len(encoded.input_ids) == len(encoded.labels)
    assert all(label in (IGNORE, token) for token, label in zip(*encoded, strict=True))
    assert encoded.labels[0] == IGNORE != encoded.labels[-1]
    assert not isinstance(typed, UnpairedRow) or isinstance(typed.label, bool)


@cases(2.0)
@given(row)
def test_a_row_is_typed_and_tokenised_or_its_field_is_named(raw: Any) -> None:
    for detect, parse, shapes in (
        (conversation_format, parse_conversation, CONVERSATIONS),
        (preference_format, parse_preference_pair, PAIRS),
        (unpaired_format, parse_unpaired, UNPAIRED),
    ):
        for wanted in RowFormat:
            found = attempt(lambda wanted=wanted, detect=detect: detect(raw, wanted))  # type: ignore[misc]
            if found is not None:
                typed = attempt(lambda found=found, parse=parse: parse(raw, found), "field")  # type: ignore[misc]
                if typed is not None:
                    tokens(typed)
                    assert all(isinstance(name, str) for name in ignored_fields(raw, shapes[found]))


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


@cases(1.0)
@given(content.map(gzip.compress) | st.binary(max_size=60), st.lists(damage, max_size=2), bad_rows)
def test_packed_files_of_any_bytes(raw: bytes, how: list[Any], handling: BadRows) -> None:
    for change in how:
        raw = damaged(raw, change)
    with ground() as here, bounded_memory():
        for suffix in (".gz", ".bz2", ".zst"):
            usable(here.folder(suffix[1:], **{f"rows.jsonl{suffix}": raw}) / f"rows.jsonl{suffix}", handling)


@cases(0.5)
@given(st.dictionaries(text, value, max_size=3).map(json.dumps) | text, st.binary(max_size=60) | parquet())
def test_a_folder_of_any_state(state: str, arrow: bytes) -> None:
    with ground() as here:
        files = {"state.json": state.encode("utf-8", "surrogatepass"), "data.arrow": arrow}
        folder = here.folder("saved", **files)
        attempt(lambda: conversations(FileSource(path=str(folder)), "train"), folder)
        (folder / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
        attempt(lambda: conversations(FileSource(path=str(folder)), "train"), folder)
