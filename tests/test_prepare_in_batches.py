"""A data stage's files against those of rows tokenised one by one: the same bytes, counts and errors."""

import os
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
import torch
from chat_tokenizers import tokenizer_of
from test_prepare import jsonl, turns

from paft.chat import words
from paft.chat.batch import BatchEncoder
from paft.config import BadRows, FileSource, Source, SpecialTokens, TooLong
from paft.data import ahead, tokens
from paft.data.ahead import batches
from paft.data.prepare import prepare_preference, prepare_sft
from paft.data.sources import conversations

BATCHES = [(1, "true"), (2, "false"), (7, "true"), (64, "false")]
"""Rows of a batch, and whether the tokenizer may use several cores."""
TOKENIZERS = {
    "without BOS": ("byte level", "chatml", False),
    "with BOS": ("sentencepiece legacy", "zephyr", True),
    "joins line feeds": ("byte level without words", "llama3", False),
    "refuses system messages": ("byte level", "mistral_v1", True),
}
FEEDS = ("", "\n", "\n\n")
SYSTEM = {"role": "system", "content": "Be brief."}
SOURCES: dict[str, dict] = {
    "all": {},
    "dropped": {"too_long": TooLong.drop},
    "truncated": {"too_long": TooLong.truncate, "held_out": 5},
    "marks as text": {"too_long": TooLong.drop, "special_tokens_in_text": SpecialTokens.text},
}


def conversation_rows() -> list[dict]:
    """Of one to three turns; some too long, some that a template refuses, some that end in marks or begin in space."""
    rows = [
        turns(
            *(
                {"content": FEEDS[at % 3] + f"{at} is it. " * (1 + at * turn % 5)}
                for turn in range(1 + at % 3)
            )
        )
        for at in range(40)
    ]
    for at, row in enumerate(rows):
        row["messages"][0]["content"] = f"Q{at}"
    rows[3]["messages"].insert(0, SYSTEM)
    rows[11]["messages"][-1]["content"] = "long " * 300
    rows[12]["messages"][-1]["content"] = "yes</s>"
    rows[13]["messages"][-1]["content"] = "</s>\n"
    rows[14]["messages"][0]["content"] = "What is <|im_end|>? " * 30
    rows[17]["messages"][1]["weight"] = 0 if len(rows[17]["messages"]) > 2 else 1
    rows[20] = {"messages": []}
    return rows


def pair_rows() -> list[dict]:
    rows = [
        {
            "prompt": f"Q{at} " * (1 + 9 * (at % 7)),
            "chosen": f"{FEEDS[at % 3]}yes {at}",
            "rejected": "no " * (1 + at % 4),
        }
        for at in range(40)
    ]
    rows[5] = {"prompt": "Q", "chosen": "yes</s>", "rejected": "yes"}
    rows[6]["chosen"] = "long " * 300
    rows[7] = {
        "chosen": [SYSTEM, *turns({"content": "a"})["messages"]],
        "rejected": [SYSTEM, *turns({"content": "b"})["messages"]],
    }
    rows[9] = {"prompt": "Q", "chosen": "same", "rejected": "same"}
    return rows


def row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the stage's encoder take every row by itself."""

    def alone(encode, rows: list) -> list:
        made = []
        for row in rows:
            try:
                made.append(encode(row))
            except ValueError as error:
                made.append(error)
        return made

    def each(self: BatchEncoder, rows: list) -> list:
        return alone(lambda row: self.conversation(row.messages), rows)

    monkeypatch.setattr(BatchEncoder, "conversations", each)
    monkeypatch.setattr(BatchEncoder, "pairs", lambda self, rows: alone(self.pair, rows))


def written(branch: str, source: Source, name: str, out: Path) -> tuple[object, dict[str, bytes]]:
    """Counts or the error's words, and every file's bytes."""
    kind, template, adds_bos = TOKENIZERS[name]
    run = prepare_sft if branch == "sft" else prepare_preference
    out.mkdir()
    try:
        result: object = run(source, tokenizer_of(kind, template, adds_bos=adds_bos), out)
    except ValueError as error:
        result = str(error)
    return result, {
        file.name: file.read_bytes() for file in sorted(out.glob("*")) if not isinstance(result, str)
    }


@pytest.mark.parametrize("bad_rows", BadRows)
@pytest.mark.parametrize("options", SOURCES)
@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("branch", ["sft", "preference"])
def test_files_counts_and_errors_against_row_by_row(
    branch: str, name: str, options: str, bad_rows: BadRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = conversation_rows() if branch == "sft" else pair_rows()
    limits = {"max_length": 400, "max_prompt_length": 150, "bad_rows": bad_rows} | SOURCES[options]
    if bad_rows is BadRows.error:  # what shows only in tokens is to be reported, so that what does not goes
        rows = [row for row in rows if row.get("messages") != [] and row.get("chosen") != "same"]
    source = FileSource(path=jsonl(tmp_path / "rows.jsonl", rows), **limits)
    with monkeypatch.context() as patched:
        row_by_row(patched)
        expected = written(branch, source, name, tmp_path / "alone")
    for size, parallel in BATCHES:
        monkeypatch.setattr(ahead, "ROWS", size)
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", parallel)
        assert written(branch, source, name, tmp_path / str(size)) == expected
    if bad_rows is BadRows.error or options == "all":
        assert isinstance(expected[0], str) and "row(s) cannot be used" in expected[0]
    else:
        assert expected[1]["train.parquet"] and expected[0]["train"]["rows"] > 20


@pytest.mark.parametrize("bad_rows", BadRows)
@pytest.mark.parametrize("branch", ["sft", "preference"])
def test_several_processes_against_a_thread(
    branch: str, bad_rows: BadRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = conversation_rows() if branch == "sft" else pair_rows()
    rows = [row for row in rows if row.get("messages") != [] and row.get("chosen") != "same"]
    limits = {"max_length": 400, "max_prompt_length": 150, "bad_rows": bad_rows} | SOURCES["dropped"]
    source = FileSource(path=jsonl(tmp_path / "rows.jsonl", rows), **limits)
    monkeypatch.setattr(ahead, "ROWS", 3)
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    made = {}
    for processes, least in ((1, 1000), (3, 12)):
        monkeypatch.setattr(ahead, "ROWS_FOR_PROCESSES", least)
        monkeypatch.setenv("RAYON_NUM_THREADS", "3")
        assert ahead.processes_for(len(rows)) == processes
        made[processes] = written(branch, source, "refuses system messages", tmp_path / str(processes))
    assert made[3] == made[1]
    if bad_rows is BadRows.error:
        assert "row(s) cannot be used" in str(made[1][0])
    else:
        assert made[1][1]["train.parquet"]


@pytest.mark.parametrize(
    ("rows", "settings", "processes"),
    [
        (10**6, {}, 5),
        (10**6, {"RAYON_NUM_THREADS": "3"}, 3),
        (10**6, {"RAYON_NUM_THREADS": "0"}, 5),
        (10**6, {"RAYON_NUM_THREADS": "99"}, ahead.MOST_PROCESSES),
        (10**6, {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "3"}, 1),
        (ahead.ROWS_FOR_PROCESSES, {}, 4),
        (ahead.ROWS_FOR_PROCESSES - 1, {}, 1),
    ],
)
def test_processes_are_as_many_as_cores_settings_and_batches(
    rows: int, settings: dict[str, str], processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(5)))
    for name in ("RAYON_NUM_THREADS", "TOKENIZERS_PARALLELISM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert ahead.processes_for(rows) == processes


def test_an_error_of_reading_reaches_the_reader_of_processes_as_it_is() -> None:
    def items():
        yield from range(4)
        raise ValueError("the file changed")

    done = []
    with pytest.raises(ValueError, match=r"^the file changed$"):
        for pair in ahead.ahead(str, items(), 2):
            done.append(pair)
    assert done == [(at, str(at)) for at in range(4)]


WITHOUT_END = """
import itertools, signal, sys
from paft.data.ahead import ahead
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
try:
    for _ in ahead(lambda item: sum(range(10**5)), itertools.count(), 2):
        print("going", flush=True)
except KeyboardInterrupt:
    sys.exit(7)
"""


def test_ctrl_c_is_the_askers_alone_and_ends_all_processes() -> None:
    asker = subprocess.Popen(
        [sys.executable, "-c", WITHOUT_END],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert asker.stdout is not None and asker.stdout.readline() == b"going\n"
    os.killpg(asker.pid, signal.SIGINT)  # as a terminal sends it, to all of them
    _, said = asker.communicate(timeout=60)
    assert asker.returncode == 7 and b"Traceback" not in said, said.decode()
    with pytest.raises(ProcessLookupError):
        os.killpg(asker.pid, 0)


def test_processes_leave_the_random_numbers_of_torch_alone() -> None:
    before = torch.get_rng_state()
    assert len(list(ahead.ahead(str, iter(range(5)), 2))) == 5
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_hold_so_many_rows_or_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [1, 1, 1, 1, 50, 1, 200, 1]
    rows = [{"question": "Q", "answer": "a" * length} for length in lengths]
    source = FileSource(path=jsonl(tmp_path / "q.jsonl", rows))
    monkeypatch.setattr(ahead, "ROWS", 3)
    monkeypatch.setattr(ahead, "CHARACTERS", 100)
    parts = list(batches(conversations(source, "train")))
    assert [len(part) for part in parts] == [3, 3, 1, 1]
    assert [located for part in parts for located in part] == list(conversations(source, "train"))


def test_work_is_ahead_of_its_reader_by_a_few_items_and_in_order() -> None:
    given = []

    def items():
        for at in range(20):
            given.append(at)
            yield at

    for at, (item, made) in enumerate(ahead.ahead(str, items())):
        assert (item, made) == (at, str(at)) and len(given) <= at + 3
    assert given == list(range(20))


def test_an_error_of_the_work_reaches_its_reader() -> None:
    with pytest.raises(ZeroDivisionError):
        list(ahead.ahead(lambda item: 1 // item, [1, 0, 1]))


@pytest.mark.parametrize("branch", ["sft", "preference"])
def test_memory_does_not_grow_with_the_number_of_rows(
    branch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With small groups, batches and words to remember, four times the rows take no more."""
    monkeypatch.setattr(tokens, "ROWS_PER_GROUP", 32)
    monkeypatch.setattr(ahead, "ROWS", 16)
    monkeypatch.setattr(words, "CHARACTERS", 1000)
    tokenizer, peaks = tokenizer_of("byte level", "chatml"), []
    prepare_rows = prepare_sft if branch == "sft" else prepare_preference
    fields = ["prompt", "completion"] if branch == "sft" else ["prompt", "chosen", "rejected"]
    for number in (100, 200, 800):  # the first loads what is loaded once
        rows = [{name: f"{name} {at} " + f"{at}a " * 20 for name in fields} for at in range(number)]
        source = FileSource(
            path=jsonl(tmp_path / f"{number}.jsonl", rows), max_length=2048, max_prompt_length=1024
        )
        del rows
        tracemalloc.start()
        prepare_rows(source, tokenizer, tmp_path / str(number))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.1 * peaks[1]
