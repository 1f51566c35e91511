"""The store of finished stages: complete or absent, built once, never silently wrong."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from filelock import FileLock
from toy_graph import CELL, DATA_SFT, MERGE, PREFERENCE, SFT, noting, read_notes

from paft.store.damage import find_damage
from paft.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "stages")


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    return tmp_path / "notes.jsonl"


def ran(notes: Path) -> list[str]:
    return [line["stage"] for line in read_notes(notes)]


def start(store: Store, notes: Path, seconds: float) -> subprocess.Popen[bytes]:
    script = Path(__file__).parent / "toy_graph.py"
    return subprocess.Popen([sys.executable, str(script), str(store.root), str(notes), str(seconds)])


def wait_for(condition, seconds: float = 20.0) -> None:
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "nothing happened"
        time.sleep(0.01)


# --- get or run ---------------------------------------------------------------------------------------


def test_every_stage_runs_once_inputs_first(store, notes):
    folder = store.ensure(CELL, noting(notes))

    assert folder == store.root / "evaluate" / CELL.key
    assert ran(notes)[:2] == ["data", "data"]
    assert Counter(ran(notes)) == {"data": 2, "sft": 1, "preference": 1, "merge": 1, "evaluate": 1}


def test_finished_cell_is_a_hit_that_writes_nothing(store, notes):
    store.ensure(CELL, noting(notes))
    before = {p: p.stat().st_mtime_ns for p in store.root.rglob("*")}

    Store(store.root).ensure(CELL, noting(notes))

    assert {p: p.stat().st_mtime_ns for p in store.root.rglob("*")} == before
    assert len(ran(notes)) == 6


def test_deleted_merged_model_leaves_its_evaluation_a_hit(store, notes):
    store.ensure(CELL, noting(notes))

    store.drop(MERGE)

    assert not store.path(MERGE).exists()
    assert Store(store.root).missing(CELL) == []
    store.ensure(CELL, noting(notes))
    assert len(ran(notes)) == 6


def test_deletion_that_was_cut_short_is_seen_as_done_and_finished_by_the_next(store, notes):
    store.ensure(CELL, noting(notes))
    going = Path(f"{store.path(MERGE)}.deleted-1")
    store.path(MERGE).rename(going)  # killed here

    assert Store(store.root).missing(CELL) == []
    store.drop(MERGE)
    assert not going.exists()


def test_stage_json_is_the_whole_record(store, notes):
    store.ensure(CELL, noting(notes))

    record = store.record(SFT)

    result = store.path(SFT) / "sub" / "result.txt"
    assert (record["stage"], record["key"], record["identity"]) == ("sft", SFT.key, SFT.identity)
    assert record["identity"]["inputs"]["data"] == DATA_SFT.identity
    assert record["inputs"] == {"data": {"stage": "data", "key": DATA_SFT.key}}
    assert set(record["outputs"]) == {"attempts.txt", "sub/result.txt"}
    assert record["outputs"]["sub/result.txt"]["bytes"] == result.stat().st_size
    assert record["outputs"]["sub/result.txt"]["sha256"] == _sha256sum(result)
    assert record["metrics"] == {"attempts": 1}
    assert {"git", "versions", "host", "seconds", "finished", "peak_memory_bytes"} <= record["run"].keys()
    assert {"python", "torch", "lm-eval"} <= record["run"]["versions"].keys()
    assert record["run"]["git"].keys() == {"commit", "dirty"}


def _sha256sum(path: Path) -> str:
    return subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]


# --- crashes ------------------------------------------------------------------------------------------


def test_crash_leaves_nothing_complete_and_the_next_run_goes_on_in_its_folder(store, notes):
    def crash(stage, inputs, out):
        if stage.name == "sft":
            (out / "checkpoint").write_text("step 3")
            raise RuntimeError("out of memory")
        return noting(notes)(stage, inputs, out)

    with pytest.raises(RuntimeError, match="out of memory"):
        store.ensure(CELL, crash)

    partial = Path(f"{store.path(SFT)}.partial")
    assert not store.path(SFT).exists() and not store.complete(SFT)
    assert (partial / "checkpoint").read_text() == "step 3"
    store.ensure(CELL, noting(notes))
    assert (store.path(SFT) / "checkpoint").read_text() == "step 3"
    assert not partial.exists()


def test_numbers_json_cannot_hold_fail_the_stage(store):
    with pytest.raises(ValueError, match="JSON"):
        store.ensure(DATA_SFT, lambda *_: {"loss": float("nan")})

    assert not store.complete(DATA_SFT)


def test_killed_holder_releases_its_stage(store, notes):
    holder = start(store, notes, 60)
    partial = Path(f"{store.path(DATA_SFT)}.partial")
    wait_for((partial / "attempts.txt").exists)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()

    store.ensure(CELL, noting(notes), poll_seconds=0.02)

    assert len(ran(notes)) == 6
    # the killed run's folder was gone on with
    assert sum(store.record(s)["metrics"]["attempts"] for s in CELL.walk()) == 7


# --- damage -------------------------------------------------------------------------------------------


def flip_a_byte(folder: Path) -> None:
    path = folder / "sub" / "result.txt"
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)


def truncate(folder: Path) -> None:
    path = folder / "sub" / "result.txt"
    path.write_bytes(path.read_bytes()[:-1])


def delete(folder: Path) -> None:
    (folder / "sub" / "result.txt").unlink()


def cut_stage_json(folder: Path) -> None:
    path = folder / "stage.json"
    path.write_text(path.read_text()[:50])


def empty_stage_json(folder: Path) -> None:
    (folder / "stage.json").write_text("[]")


DAMAGE = {
    flip_a_byte: "sub/result.txt does not have its recorded sha256",
    truncate: "sub/result.txt does not have its recorded sha256",
    delete: "sub/result.txt is missing",
    cut_stage_json: "stage.json cannot be read",
    empty_stage_json: "stage.json cannot be read",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda d: d.__name__)
def test_damage_is_reported_moved_aside_and_rebuilt(store, notes, damage, caplog):
    store.ensure(CELL, noting(notes))
    damage(store.path(CELL))

    with caplog.at_level(logging.WARNING, "paft"):
        folder = Store(store.root).ensure(CELL, noting(notes))

    assert ran(notes) == ["data", "data", *ran(notes)[2:6], "evaluate"]
    assert find_damage(folder) is None
    assert DAMAGE[damage] in caplog.text and f"{CELL.key}.damaged-1" in caplog.text
    assert (store.root / "evaluate" / f"{CELL.key}.damaged-1").is_dir()


def test_damaged_input_is_rebuilt_before_it_is_used(store, notes):
    store.ensure(CELL, noting(notes))
    store.drop(MERGE)
    store.drop(CELL)
    flip_a_byte(store.path(SFT))

    Store(store.root).ensure(CELL, noting(notes))

    assert ran(notes)[6:] == ["sft", "merge", "evaluate"]


def test_damage_twice_keeps_both(store, notes):
    for _ in range(2):
        Store(store.root).ensure(CELL, noting(notes))
        truncate(store.path(CELL))
    Store(store.root).ensure(CELL, noting(notes))

    assert len(list((store.root / "evaluate").glob("*.damaged-*"))) == 2


# --- many processes -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_four_processes_build_each_stage_once_and_train_both_branches_at_a_time(store, notes):
    processes = [start(store, notes, 0.3) for _ in range(4)]

    assert [p.wait(timeout=60) for p in processes] == [0] * 4

    assert Counter(ran(notes)) == {"data": 2, "sft": 1, "preference": 1, "merge": 1, "evaluate": 1}
    sft, preference = (next(n for n in read_notes(notes) if n["stage"] == s) for s in ("sft", "preference"))
    assert sft["pid"] != preference["pid"]
    assert max(sft["from"], preference["from"]) < min(sft["to"], preference["to"])


@pytest.mark.slow
def test_damage_found_by_four_processes_at_once_is_rebuilt_once(store, notes):
    store.ensure(CELL, noting(notes))
    truncate(store.path(CELL))

    processes = [start(store, notes, 0.1) for _ in range(4)]

    assert [p.wait(timeout=60) for p in processes] == [0] * 4
    assert Counter(ran(notes))["evaluate"] == 2
    assert len(list((store.root / "evaluate").glob("*.damaged-*"))) == 1


def test_held_branch_is_left_to_its_holder(store, notes):
    store.ensure(DATA_SFT, noting(notes))
    with FileLock(f"{store.path(DATA_SFT)}.lock"), FileLock(_lock(store, SFT)):
        other = start(store, notes, 0)
        wait_for(lambda: "preference" in ran(notes))
        assert not {"sft", "merge"} & set(ran(notes))
    assert other.wait(timeout=20) == 0

    assert Counter(ran(notes))["sft"] == 1


def _lock(store: Store, stage) -> str:
    store.path(stage).parent.mkdir(parents=True, exist_ok=True)
    return f"{store.path(stage)}.lock"


def test_reader_never_sees_a_folder_without_stage_json(store, notes):
    other = start(store, notes, 0.05)
    seen = 0
    while other.poll() is None:
        for folder in store.root.glob("*/*"):
            if folder.is_dir() and "." not in folder.name:
                assert (folder / "stage.json").is_file()
                assert find_damage(folder) is None
                seen += 1
    assert other.returncode == 0 and seen > 0


# --- lending ------------------------------------------------------------------------------------------


def test_lent_folder_stands_for_its_stage_inside_only(store, notes, tmp_path):
    lent = tmp_path / "unpublished"
    lent.mkdir()
    (lent / "stage.json").touch()  # toy stages look for it
    store.ensure(PREFERENCE, noting(notes))

    with store.lend(SFT, lent):
        assert store.path(SFT) == lent and store.sound(SFT)
        store.ensure(CELL, noting(notes))
    assert not store.complete(SFT)

    assert ran(notes) == ["data", "preference", "merge", "evaluate"]
    assert json.loads((store.path(MERGE) / "stage.json").read_text())["inputs"]["sft"]["key"] == SFT.key
    assert store.missing(CELL) == []


def test_lending_ends_when_the_borrower_fails(store, tmp_path):
    with pytest.raises(RuntimeError), store.lend(SFT, tmp_path):
        raise RuntimeError
    assert store.path(SFT) == store.root / "sft" / SFT.key


# --- without verification -----------------------------------------------------------------------------


def test_store_for_planning_reads_no_outputs(store, notes):
    store.ensure(CELL, noting(notes))
    flip_a_byte(store.path(CELL))

    assert Store(store.root, verify=False).missing(CELL) == []
    assert store.path(CELL).is_dir()
