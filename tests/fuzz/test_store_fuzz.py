"""Stores that someone damaged or forged: rebuilt or refused, never believed, and nothing is written outside."""

import atexit
import copy
import json
import os
import pickle
import shutil
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hostile import (
    ESCAPES,
    Ground,
    attempt,
    bounded_memory,
    cases,
    damage,
    damaged,
    ground,
    number,
    text,
    value,
)
from hypothesis import example, given
from hypothesis import strategies as st
from resumable import configured, train
from toy_graph import CELL, DATA_SFT, SFT, noting

from paft.config import DType, HardwareConfig, ModelConfig
from paft.files.jsonfile import write_json
from paft.graph.stage import Stage
from paft.plan.precedents import Precedents, flops_per_second, median, run_seconds, startup_seconds
from paft.report.table import rows
from paft.store.damage import WORK, find_damage
from paft.store.store import Store

pytestmark = pytest.mark.fuzz

RESULT = "sub/result.txt"
STAGES = [DATA_SFT, SFT, CELL]
stage = st.sampled_from(STAGES)


@cache
def finished() -> Path:
    """A store with every stage of the toy graph, made once."""
    root = Path(tempfile.mkdtemp(prefix="paft-fuzz-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    Store(root / "store").ensure(CELL, noting(root / "notes"))
    return root / "store"


def built(here: Ground) -> Store:
    shutil.copytree(finished(), here.inside / "store")
    return Store(here.inside / "store")


def restored(here: Ground, target: Stage) -> None:
    """Whatever the store holds now, the next run ends with every stage as the first run left it."""
    fresh = Store(here.inside / "store")
    with bounded_memory():
        fresh.ensure(target, noting(here.inside / "notes"))
    assert find_damage(fresh.path(target)) is None
    assert (fresh.path(target) / RESULT).read_text().endswith(target.key)
    assert fresh.record(target)["key"] == target.key


def readers(store: Store) -> None:
    """What only looks at a store leaves out what it cannot read."""
    assert isinstance(rows(store.root), list)
    found = Precedents.read(store.root, HardwareConfig())
    found.of("sft", ModelConfig(name="x"))
    found.trainings("sft", ModelConfig(name="x"))
    found.peak_tflops(DType.bfloat16)
    for figure in (run_seconds, flops_per_second, startup_seconds):
        median(found.records, figure)


@cases(1.0)
@given(
    stage,
    st.binary(max_size=60)
    | value.map(lambda found: json.dumps(found).encode())
    | st.lists(damage, max_size=3),
)
@example(CELL, b"[" * 100_000)
@example(CELL, b"{}")
def test_any_bytes_as_stage_json(target: Stage, change: bytes | list[tuple[Any, ...]]) -> None:
    with ground() as here:
        store = built(here)
        path = store.path(target) / "stage.json"
        content = path.read_bytes()
        for how in [] if isinstance(change, bytes) else change:
            content = damaged(content, how)
        path.write_bytes(change if isinstance(change, bytes) else content)
        readers(store)
        restored(here, target)


FIELDS = ["stage", "key", "identity", "inputs", "metrics", "outputs", "run"]
digest = st.fixed_dictionaries({}, optional={"bytes": number | text, "sha256": text | value}) | value
outputs = st.dictionaries(
    st.sampled_from([*ESCAPES, RESULT, "/dev/zero", "x\0y", "stage.json"]) | text, digest, max_size=3
)
seen = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        ["hardware", "flops", "train_seconds", "peak_tflops", "validation_seconds"], value | number
    ),
)


@st.composite
def forged(draw: st.DrawFn, record: dict[str, Any]) -> dict[str, Any]:
    """A stage.json with some of what it says replaced, at any depth."""
    record = copy.deepcopy(record)
    match draw(st.integers(0, 5)):
        case 0:
            record[draw(st.sampled_from(FIELDS))] = draw(value)
        case 1:
            del record[draw(st.sampled_from(FIELDS))]
        case 2:
            record["outputs"] = draw(outputs)
        case 3:
            record["metrics"] = {"throughput": draw(seen | value)}
        case 4:
            record["run"][draw(st.sampled_from(["host", "seconds", "git"]))] = draw(value)
        case _:
            record["identity"][draw(st.sampled_from(["config", "inputs", "stage"]))] = draw(value)
    return record


@cases(1.0)
@given(st.data(), stage)
def test_a_stage_json_that_lies(data: st.DataObject, target: Stage) -> None:
    with ground() as here:
        store = built(here)
        path = store.path(target) / "stage.json"
        path.write_text(json.dumps(data.draw(forged(json.loads(path.read_text())))))
        readers(store)
        restored(here, target)


@cases(1.0)
@given(value, st.sampled_from(["results.json", "merge.json", "sparsity.json"]), st.booleans())
def test_any_results_beside_a_sound_stage_json(content: Any, name: str, deep: bool) -> None:
    with ground() as here:
        store = built(here)
        results = {"tasks": content, "average": content} if content else content
        raw = "[" * 100_000 if deep else json.dumps(results)
        (store.path(CELL) / name).write_text(raw)
        readers(store)


PLACES = ["", ".partial", ".lock", "/stage.json", "/stage.json.tmp", f"/{RESULT}", "/sub", ".partial/sub"]
TARGETS = [*ESCAPES[:2], "/dev/zero", "/dev/null", "/etc", ".", "nowhere", "OUTSIDE", "OUTSIDE/secret"]


@cases(0.5)
@given(stage, st.sampled_from(PLACES), st.sampled_from(TARGETS), st.booleans())
def test_links_that_lead_out_of_the_store(target: Stage, place: str, to: str, keep: bool) -> None:
    """`ground` sees that nothing is written where they lead."""
    with ground() as here:
        store = built(here)
        path = Path(f"{store.path(target)}{place}")
        if not keep:
            store.drop(target)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            path.rename(here.inside / "before")
        os.symlink(to.replace("OUTSIDE", str(here.outside)), path)
        readers(store)
        attempt(lambda: restored(here, target), path.name)


KINDS = ["file", "folder", "full folder", "pipe", "pickle"]


@cases(0.2)
@given(stage, st.sampled_from(PLACES), st.sampled_from(KINDS))
def test_something_else_in_the_place_of_a_stage(target: Stage, place: str, kind: str) -> None:
    with ground() as here:
        store = built(here)
        path = Path(f"{store.path(target)}{place}")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            path.rename(here.inside / "before")
        match kind:
            case "file" | "pickle":
                path.write_bytes(here.pickle if kind == "pickle" else b"")
            case "folder" | "full folder":
                path.mkdir()
                if kind == "full folder":
                    (path / "x").write_text("x")
            case "pipe":
                os.mkfifo(path)
        readers(store)
        attempt(lambda: restored(here, target), path.name)


def test_a_stage_copied_to_another_key_is_not_that_stage() -> None:
    with ground() as here:
        store = built(here)
        other = Stage("sft", 1, {"lr": 2e-3}, {"data": DATA_SFT})
        store.path(SFT).rename(store.path(other))
        restored(here, other)


@pytest.mark.parametrize("name", ["stage.json", "stage.json.tmp"])
def test_writing_json_replaces_a_link(name: str) -> None:
    with ground() as here:
        (here.inside / name).symlink_to(here.outside / "secret")
        write_json(here.inside / "stage.json", {"a": 1})
        assert json.loads((here.inside / "stage.json").read_text()) == {"a": 1}


def test_a_pickle_left_as_a_checkpoint_is_never_loaded() -> None:
    """`ground` sees that the pickle's folder is not made."""
    with ground() as here:
        (out := here.inside / "sft" / WORK).mkdir(parents=True)
        (out / "step=4.ckpt").write_bytes(here.pickle)
        with suppress(pickle.UnpicklingError):
            train(configured(here.inside), "sft", out.parent)
