"""Packed files, several files, folders of `datasets` and mixtures: the same rows, known by their contents."""

import bz2
import gzip
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paft.config import FileSource
from paft.data.files import rows_of
from paft.data.sources import conversations
from paft.files.fingerprint import file_sha256
from paft.files.listed import listed_files
from paft.graph.build import refuse_changed
from paft.graph.configs import DataStage
from paft.graph.rows import rows_sha256
from paft.graph.stage import canonical

ROWS = [{"prompt": f"Q{at}", "completion": f"A{at}"} for at in range(3)]


def zstandard(content: bytes) -> bytes:
    packed = pa.BufferOutputStream()
    with pa.CompressedOutputStream(packed, "zstd") as stream:
        stream.write(content)
    return packed.getvalue().to_pybytes()


PACKERS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".bz2": bz2.compress, ".zst": zstandard}


def jsonl(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows: list[dict]) -> bytes:
    out = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue().to_pybytes()


KINDS = {
    ".jsonl": jsonl(ROWS),
    ".json": json.dumps(ROWS).encode(),
    ".csv": b"prompt,completion\n" + "".join(f"Q{at},A{at}\n" for at in range(3)).encode(),
    ".parquet": parquet(ROWS),
}


def write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def asked(source: FileSource) -> list[str]:
    return [row.messages[0]["content"] for _, row in conversations(source, "train")]


# --- packed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_file_holds_the_rows_of_the_file(tmp_path: Path, kind: str, packing: str) -> None:
    plain = Path(write(tmp_path / f"a{kind}", KINDS[kind]))
    packed = Path(write(tmp_path / f"b{kind}{packing}", PACKERS[packing](KINDS[kind])))
    assert list(rows_of(packed)) == list(rows_of(plain)) and len(list(rows_of(plain))) == 3


@pytest.mark.parametrize("packing", PACKERS)
def test_a_file_packed_in_pieces_is_read_to_its_end(tmp_path: Path, packing: str) -> None:
    """As `cat a.gz b.gz` and parallel compressors write."""
    pieces = [PACKERS[packing](jsonl([row])) for row in ROWS]
    path = write(tmp_path / f"a.jsonl{packing}", b"".join(pieces))
    assert asked(FileSource(path=path)) == ["Q0", "Q1", "Q2"]


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["cut", "no archive"])
def test_a_damaged_archive_is_named(tmp_path: Path, kind: str, packing: str, damage: str) -> None:
    packed = PACKERS[packing](KINDS[kind] * 50)
    path = write(tmp_path / f"a{kind}{packing}", packed[:-20] if damage == "cut" else KINDS[kind])
    with pytest.raises(
        ValueError, match=rf"a{kind}{packing} (cannot be unpacked|is not a readable)"
    ) as caught:
        list(rows_of(Path(path)))
    assert type(caught.value) is ValueError


# --- several ----------------------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path: Path) -> tuple[str, str]:
    csv = b"instruction,output\n" + "".join(f"R{at},A\n" for at in range(2)).encode()
    return write(tmp_path / "a.jsonl", jsonl(ROWS)), write(tmp_path / "b.csv", csv)


def test_rows_of_a_list_are_those_of_its_files_in_order_each_in_its_format(two: tuple[str, str]) -> None:
    first, second = two
    assert asked(FileSource(path=[second, first])) == ["R0", "R1", "Q0", "Q1", "Q2"]
    rows = conversations(FileSource(path=[first, second]), "train")
    assert [place for place, _ in rows][2:4] == [f"{first}, row 3", f"{second}, row 1"]
    assert (
        rows.read_as == "a.jsonl: prompt_completion (prompt, completion); b.csv: alpaca (instruction, output)"
    )


def test_a_pattern_means_the_files_that_match_by_name(two: tuple[str, str], tmp_path: Path) -> None:
    write(tmp_path / "c.jsonl", jsonl([{"prompt": "last", "completion": "A"}]))
    assert asked(FileSource(path=str(tmp_path / "*.jsonl"))) == ["Q0", "Q1", "Q2", "last"]
    assert asked(FileSource(path=str(tmp_path / "[bc].*"))) == ["R0", "R1", "last"]
    with pytest.raises(ValueError, match=r"no file matches .*\*.json;"):
        listed_files([str(tmp_path / "*.json")])


def test_a_name_with_brackets_that_is_there_is_no_pattern(tmp_path: Path) -> None:
    assert asked(FileSource(path=write(tmp_path / "[a].jsonl", jsonl(ROWS)))) == ["Q0", "Q1", "Q2"]


@pytest.mark.parametrize("path", [[], [1], 3, {"a": 1}, [["a"]]])
def test_a_path_that_is_none_is_refused(path: object) -> None:
    with pytest.raises(ValueError, match=r"data.\*.path must be a path, a pattern or a list of them, got"):
        FileSource(path=path)


# --- what they are known by -------------------------------------------------------------------------------


def test_one_file_is_known_by_its_own_sha256(two: tuple[str, str], tmp_path: Path) -> None:
    alone = file_sha256(Path(two[0]))
    for path in (two[0], [two[0]], str(tmp_path / "a.*")):
        assert rows_sha256(FileSource(path=path), "train") == alone


def test_several_files_are_known_by_their_contents_in_order(two: tuple[str, str], tmp_path: Path) -> None:
    known = rows_sha256(FileSource(path=list(two)), "train")
    moved = [write(tmp_path / f"moved{Path(path).suffix}", Path(path).read_bytes()) for path in two]
    assert rows_sha256(FileSource(path=moved), "train") == known
    assert rows_sha256(FileSource(path=moved[::-1]), "train") != known
    write(Path(moved[1]), b"instruction,output\nR0,B\n")
    assert rows_sha256(FileSource(path=moved), "train") != known


def test_new_settings_are_in_a_key_only_where_they_are_given(two: tuple[str, str]) -> None:
    plain = canonical(FileSource(path=two[0]))
    assert plain.keys().isdisjoint({"path", "columns", "mix", "mix_seed"})
    assert canonical(FileSource(path=list(two))) == plain
    mapped = canonical(FileSource(path=two[0], columns={"prompt": "q"}))
    assert mapped == {**plain, "columns": {"prompt": "q"}}


def test_a_changed_file_of_several_is_refused(
    two: tuple[str, str], compose: Callable, tmp_path: Path
) -> None:
    config = compose("data=jsonl", f"data.sft.path=[{','.join(two)}]", "paradigm=sft")
    source = config.data.sft
    stage = DataStage(
        "sft", config.model, config.data.template, source, {"train": rows_sha256(source, "train")}
    )
    refuse_changed(stage)
    write(Path(two[1]), b"instruction,output\nR0,B\n")
    with pytest.raises(ValueError, match=r"a.jsonl, .*b.csv changed after this run was planned"):
        refuse_changed(stage)
    gone = replace(source, path=str(tmp_path / "gone*"))
    with pytest.raises(ValueError, match=r"gone\* changed after .* now the file is gone"):
        refuse_changed(replace(stage, source=gone))


# --- folders of datasets ----------------------------------------------------------------------------------


def test_a_saved_data_set_gives_its_rows(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"Q{at}"}, {"role": "assistant", "content": "A"}]}
        for at in range(5)
    ]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved", num_shards=2)
    source = FileSource(path=str(tmp_path / "saved"))
    assert asked(source) == [f"Q{at}" for at in range(5)]
    places = [place for place, _ in conversations(source, "train")]
    assert places[3] == f"{tmp_path / 'saved'}/data-00001-of-00002.arrow, row 1"


def test_a_shuffled_data_set_is_read_in_its_new_order(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).select([2, 0]).save_to_disk(tmp_path / "saved")
    assert asked(FileSource(path=str(tmp_path / "saved"))) == ["Q2", "Q0"]


def test_splits_are_to_be_named(tmp_path: Path) -> None:
    saved = datasets.DatasetDict(
        train=datasets.Dataset.from_list(ROWS), test=datasets.Dataset.from_list(ROWS[:1])
    )
    saved.save_to_disk(tmp_path / "saved")
    with pytest.raises(
        ValueError, match=r"saved holds the splits train, test; give one of them, as .*saved/train"
    ):
        conversations(FileSource(path=str(tmp_path / "saved")), "train")
    assert asked(FileSource(path=str(tmp_path / "saved/test"))) == ["Q0"]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            None,
            r"is a folder, and not one that datasets.save_to_disk wrote .*name its files, as '.*/\*.jsonl'",
        ),
        ({"_data_files": [{"filename": "../outside.arrow"}]}, "state.json names no files of its own folder"),
        ({"_data_files": "a.arrow"}, "state.json names no files of its own folder"),
        ({"_data_files": [{"filename": "gone.arrow"}]}, "there is no file .*gone.arrow"),
    ],
)
def test_another_folder_is_refused(tmp_path: Path, state: object, message: str) -> None:
    if state is not None:
        (tmp_path / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match=message):
        conversations(FileSource(path=str(tmp_path)), "train")


# --- mixtures ---------------------------------------------------------------------------------------------


def many(path: Path, name: str, num: int) -> str:
    return write(
        path / f"{name}.jsonl", jsonl([{"prompt": f"{name}{at}", "completion": "A"} for at in range(num)])
    )


def test_a_mixture_draws_each_row_once_in_order_by_its_share(tmp_path: Path) -> None:
    a, b = many(tmp_path, "a", 2000), many(tmp_path, "b", 2000)
    source = FileSource(mix={a: 3, b: 1})
    drawn = asked(source)
    assert drawn == asked(source) != asked(replace(source, mix_seed=1))
    of_a, of_b = ([text for text in drawn if text[0] == name] for name in "ab")
    assert of_a == [f"a{at}" for at in range(2000)] and of_b == [f"b{at}" for at in range(len(of_b))]
    # 2000 draws of three quarters come with 667 others, of a standard deviation of 30
    assert abs(len(of_b) - 667) < 4 * 30


@pytest.mark.parametrize("seed", range(3))
def test_a_mixture_ends_where_interleave_datasets_does(tmp_path: Path, seed: int) -> None:
    """With the row that is the last of its file; draws are of another generator."""
    sizes = {"a": 30, "b": 50, "c": 40}
    mix = {many(tmp_path, name, num): 1.0 for name, num in sizes.items()}
    ours = [text[0] for text in asked(FileSource(mix=mix, mix_seed=seed))]
    parts = [datasets.Dataset.from_list([{"x": name}] * num) for name, num in sizes.items()]
    theirs = datasets.interleave_datasets(parts, [1 / 3] * 3, seed=seed, stopping_strategy="first_exhausted")[
        "x"
    ]
    for drawn in (ours, list(theirs)):
        used_up = [name for name, num in Counter(drawn).items() if num == sizes[name]]
        assert used_up == [drawn[-1]]


def test_a_mixture_is_known_by_contents_shares_and_seed(tmp_path: Path) -> None:
    a, b = many(tmp_path, "a", 3), many(tmp_path, "b", 4)
    known = rows_sha256(FileSource(mix={a: 0.7, b: 0.3}), "train")
    assert known == rows_sha256(FileSource(mix={a: 7, b: 3}), "train")
    assert known != rows_sha256(FileSource(mix={a: 0.6, b: 0.4}), "train")
    assert canonical(FileSource(mix={a: 1, b: 1}, mix_seed=1))["mix_seed"] == 1
    assert len(asked(FileSource(mix={a: 1, b: 1}, max_rows=2))) == 2


@pytest.mark.parametrize("mix", [{"a": 0}, {"a": -1.0, "b": 2.0}, {"a": float("inf")}])
def test_weights_are_positive(mix: dict) -> None:
    with pytest.raises(ValueError, match=r"data.\*.mix must be \{path: weight\} with positive weights"):
        FileSource(mix=mix)


def test_a_mixture_stands_in_place_of_a_path() -> None:
    with pytest.raises(ValueError, match=r"data.\*.mix must be given alone, without data.\*.path"):
        FileSource(path="a.jsonl", mix={"b.jsonl": 1})


# --- the command line -------------------------------------------------------------------------------------


def test_lists_mappings_and_mixtures_are_set_in_one_word(compose: Callable, two: tuple[str, str]) -> None:
    from paft.command.compose import with_new_tasks

    words = with_new_tasks(
        [
            "data=jsonl",
            f"data.sft.path=[{two[0]},{two[1]}]",
            "data.sft.columns={prompt: question, completion: answer}",
            f"data.preference.mix={{{two[0]}: 0.7, {two[1]}: 0.3}}",
        ]
    )
    config = compose(*words)
    assert config.data.sft.path == list(two)
    assert config.data.sft.columns == {"prompt": "question", "completion": "answer"}
    assert config.data.preference.shares == pytest.approx({two[0]: 0.7, two[1]: 0.3})
    assert config.data.sft.title == "a.jsonl + 1 more" == config.data.preference.title


def test_without_path_and_mixture_the_path_is_asked_for(compose: Callable, two: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match=r"data.sft.path must be given"):
        compose("data=jsonl", "paradigm=sft")


def test_a_row_that_is_too_long_names_the_field_of_its_file(tmp_path: Path) -> None:
    from chat_tokenizers import tokenizer_of

    from paft.data.prepare import prepare_sft

    first = write(tmp_path / "a.jsonl", jsonl(ROWS))
    second = write(tmp_path / "b.jsonl", jsonl([{"instruction": "Q", "output": "long " * 60}]))
    source = FileSource(path=[first, second], max_length=50, max_prompt_length=20)
    with pytest.raises(ValueError, match=r"b.jsonl, row 1: field 'output' has \d+ tokens"):
        prepare_sft(source, tokenizer_of("byte level", "chatml"), tmp_path / "out")
