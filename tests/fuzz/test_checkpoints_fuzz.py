"""Base model folders that are damaged, that lie or that lead elsewhere: refused before anything reads their weights."""

import json
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
    entries,
    ground,
    safetensors,
    text,
    tree,
    value,
)
from hypothesis import example, given
from hypothesis import strategies as st

from paft.config import LocalModel
from paft.cost.shape import read_shape
from paft.files.fingerprint import folder_sha256
from paft.files.safetensors import read_checkpoint
from paft.merge.apply import apply_adapters
from paft.proof.base import load_base

pytestmark = pytest.mark.fuzz

NAMES = ("q_proj.weight", "up_proj.weight", "norm.weight")
SHARDS = {
    "a.safetensors": safetensors(*entries({NAMES[0]: [6, 4], NAMES[2]: [4]})),
    "b.safetensors": safetensors(*entries({NAMES[1]: [6, 4]})),
}
MAP = {NAMES[0]: "a.safetensors", NAMES[1]: "b.safetensors", NAMES[2]: "a.safetensors"}
INDEX = "model.safetensors.index.json"
LLAMA = b'{"model_type": "llama"}'
ADAPTER = safetensors(*entries({"q_proj.lora_A.weight": [2, 4], "q_proj.lora_B.weight": [6, 2]}))
ADAPTER_CONFIG = json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}).encode()


def merge_onto(here: Ground, base: Path) -> dict[str, Any] | None:
    """Apply a sound adapter: all of the output is in the output folder, and all else stays as it was."""
    files = {"adapter_model.safetensors": ADAPTER, "adapter_config.json": ADAPTER_CONFIG}
    adapter, out = here.folder("adapter", **files), here.inside / "out"
    before = tree(here.inside)
    with bounded_memory():
        report = attempt(lambda: apply_adapters(base, {"sft": adapter}, out))
    after = tree(here.inside)
    assert {name: content for name, content in after.items() if name in before} == before
    held = {path.name for path in base.iterdir()}
    written = {Path(name) for name in after.keys() - before.keys()} - {Path("out")}
    assert all(path.parent == Path("out") and path.name in held for path in written)
    return report


def index(weight_map: object) -> bytes:
    return json.dumps({"weight_map": weight_map}).encode()


file = st.sampled_from(
    [
        *MAP.values(),
        INDEX,
        "config.json",
        "../outside/x.safetensors",
        "/tmp/x.safetensors",
        "a.safetensors\n",
        *ESCAPES,
    ]
)
weight_map = st.dictionaries(st.sampled_from(NAMES) | text, file | text | value, max_size=4) | value


@cases(1.5)
@given(
    weight_map.map(index) | weight_map.map(lambda found: json.dumps(found).encode()) | st.binary(max_size=60)
)
@example(index(MAP))
@example(index(MAP | {NAMES[0]: "../../outside/model.safetensors"}))
@example(index(MAP | {NAMES[0]: "/etc/passwd"}))
def test_any_index(raw: bytes) -> None:
    with ground(**{"model.safetensors": SHARDS["a.safetensors"]}) as here:
        merge_onto(here, here.folder("base", **{INDEX: raw}, **SHARDS))


@cases(1.0)
@given(st.lists(damage, min_size=1, max_size=2), st.sampled_from(sorted(SHARDS)))
def test_damaged_shards(how: list[tuple[Any, ...]], shard: str) -> None:
    content = SHARDS[shard]
    for one in how:
        content = damaged(content, one)
    with ground() as here:
        merge_onto(here, here.folder("base", **(SHARDS | {INDEX: index(MAP), shard: content})))


@cases(0.5)
@given(value.map(lambda found: json.dumps(found).encode()) | st.binary(max_size=40))
@example(b"[" * 100_000)
def test_any_config_of_the_base(raw: bytes) -> None:
    with ground() as here:
        base = here.folder("base", **SHARDS, **{INDEX: index(MAP), "config.json": raw})
        attempt(lambda: folder_sha256(base), base)
        read_shape(base / "config.json")
        merge_onto(here, base)


@pytest.mark.parametrize(
    "name", [*ESCAPES, "../outside/model.safetensors", "../../outside/model.safetensors"]
)
def test_loading_never_follows_an_index_out_of_the_folder(name: str) -> None:
    """Also where the file outside is a sound one."""
    with ground(**{"model.safetensors": SHARDS["a.safetensors"]}) as here:
        base = here.folder("base", **SHARDS, **{INDEX: index(MAP | {NAMES[0]: name}), "config.json": LLAMA})
        assert attempt(lambda: read_checkpoint(base), base, repr(name)) is None
        assert attempt(lambda: load_base(base, LocalModel(name="x", path=str(base))), base) is None


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "config.json", "a.safetensors"])
def test_a_pickle_is_never_loaded(name: str) -> None:
    """`ground` sees that the pickle's folder is not made."""
    with ground() as here:
        files = {"config.json": LLAMA} | ({} if name == "pytorch_model.bin" else {INDEX: index(MAP)} | SHARDS)
        base = here.folder("base", **(files | {name: here.pickle}))
        assert attempt(lambda: load_base(base, LocalModel(name="x", path=str(base))), base) is None
