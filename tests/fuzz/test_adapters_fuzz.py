"""Adapter folders that are damaged, that lie or that mean harm: refused by name, or merged into the output folder."""

import json
import math
import os
import struct
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
    number,
    safetensors,
    text,
    tree,
    value,
)
from hypothesis import example, given
from hypothesis import strategies as st

from paft.config import Space
from paft.delta.statistics import adapter_statistics, read_adapter
from paft.merge.apply import apply_adapters, merge_adapters
from paft.merge.methods import DareTies, Linear, Slerp, TaskArithmetic, Ties

pytestmark = pytest.mark.fuzz

LAYERS = ("model.layers.0.q_proj", "model.layers.0.up_proj")
OUT, IN, RANK = 6, 4, 2
CONFIG = {
    "peft_type": "LORA",
    "r": RANK,
    "lora_alpha": 4,
    "base_model_name_or_path": "x",
    "target_modules": ["q_proj"],
}
BASE = safetensors(*entries({f"{layer}.weight": [OUT, IN] for layer in LAYERS} | {"model.norm.weight": [IN]}))
METHODS = [Linear(), TaskArithmetic(), Slerp(), Slerp(space=Space.full), Ties(), DareTies()]
method = st.sampled_from(METHODS)


def factor(layer: str, which: str) -> str:
    return f"base_model.model.{layer}.lora_{which}.weight"


SHAPES = {factor(layer, w): [RANK, IN] if w == "A" else [OUT, RANK] for layer in LAYERS for w in "AB"}
HEADER, DATA = entries(SHAPES)
WEIGHTS = safetensors(HEADER, DATA)


def adapter(
    here: Ground, name: str, weights: bytes | None = WEIGHTS, config: object = CONFIG, **more: bytes
) -> Path:
    raw = config if isinstance(config, bytes) else json.dumps(config).encode()
    files = {} if weights is None else {"adapter_model.safetensors": weights}
    return here.folder(name, **{"adapter_config.json": raw}, **files, **more)


def merge(here: Ground, sft: Path, how: Any = METHODS[0]) -> dict[str, Any] | None:
    """Merge `sft` with a sound adapter: only whole files, only in the output folder, and only finite values."""
    base = here.folder("base", **{"model.safetensors": BASE, "config.json": b"{}"})
    sound = adapter(here, "sound")
    before = tree(here.inside)
    out = here.inside / "out"
    report = attempt(lambda: merge_adapters(base, {"sft": sft, "preference": sound}, how, out))
    after = tree(here.inside)
    written = {Path(name) for name in after.keys() - before.keys()} - {Path("out")}
    assert {name: content for name, content in after.items() if name in before} == before
    assert all(path.parent == Path("out") for path in written)
    assert {path.name for path in written} <= {"model.safetensors", "config.json"}
    if report is not None:
        assert len(after["out/model.safetensors"]) == len(BASE)
        json.dumps(report, allow_nan=False)
    return report


def read(folder: Path) -> None:
    """What every reader of an adapter folder does with it."""
    with bounded_memory():
        deltas = attempt(lambda: read_adapter(folder), folder.name)
    if deltas is not None:
        json.dumps(adapter_statistics(deltas), allow_nan=False)


@cases(2.0)
@given(st.lists(damage, min_size=1, max_size=3))
@example([("length", 2**40)])
@example([("length", 2**64 - 1)])
@example([("cut", 0.0)])
def test_damaged_weights(how: list[tuple[Any, ...]]) -> None:
    weights = WEIGHTS
    for one in how:
        weights = damaged(weights, one)
    with ground() as here:
        read(adapter(here, "sft", weights))


dtype = (
    st.sampled_from(["F32", "BF16", "F16", "F64", "I8", "U64", "BOOL", "F8_E4M3", "F4", "C64", "f32"]) | value
)
size = st.sampled_from([0, 1, 2, 4, 6, -1, 2**40, 2**63, True, 2.0, "2", None]) | number
shape = st.lists(size, max_size=4) | value
offsets = st.tuples(size, size).map(list) | st.lists(size, max_size=3) | value
PARTS = [
    *(
        factor(LAYERS[0], part)
        for part in ("magnitude_vector", "B.bias", "embedding_A", "A.default", "B.other")
    ),
    *(
        f"base_model.model.{name}.weight"
        for name in (LAYERS[0], "model.norm", f"{LAYERS[0]}.base_layer", "lm_head")
    ),
]
"""What an adapter file may hold beside pairs of factors."""
names = (
    st.sampled_from(
        [*SHAPES, *PARTS, "__metadata__", "../" * 9 + "etc/passwd.lora_A.weight", ".lora_A.weight"]
    )
    | text
)


@st.composite
def lying_header(draw: st.DrawFn) -> Any:
    """The header of a sound adapter with some of what it says replaced."""
    header = json.loads(json.dumps(HEADER))
    for _ in range(draw(st.integers(1, 3))):
        entry = draw(st.sampled_from(sorted(SHAPES)))
        match draw(st.integers(0, 4)):
            case 0 if isinstance(header.get(entry), dict):
                header[entry]["dtype"] = draw(dtype)
            case 1 if isinstance(header.get(entry), dict):
                header[entry]["shape"] = draw(shape)
            case 2 if isinstance(header.get(entry), dict):
                header[entry]["data_offsets"] = draw(offsets)
            case 3:
                header[draw(names)] = header.pop(entry, None)
            case _:
                header[draw(names)] = draw(value)
    return header


@cases(2.0)
@given(lying_header() | value, st.sampled_from([DATA, DATA, b"", DATA[:-1], DATA * 2]))
@example(
    {**HEADER, factor(LAYERS[0], "A"): {"dtype": "F32", "shape": [-2, -4], "data_offsets": [0, 32]}}, DATA
)
@example(b"[" * 100_000, b"")
def test_a_header_that_lies(header: Any, data: bytes) -> None:
    with ground() as here:
        read(adapter(here, "sft", safetensors(header, data)))


SETTINGS = (
    *(
        "r",
        "lora_alpha",
        "peft_type",
        "rank_pattern",
        "alpha_pattern",
        "use_rslora",
        "bias",
        "init_lora_weights",
    ),
    *("target_modules", "base_model_name_or_path", "revision", "modules_to_save", "use_dora"),
    *("fan_in_fan_out", "ensure_weight_tying", "lora_bias"),
)
pattern = st.dictionaries(
    st.sampled_from(["q_proj", "(", "[", "*", ".*", "(?P<a>", "\\", "../q_proj"]) | text, value, max_size=2
)
setting = (
    st.sampled_from([0, -2, 2, 2.5, True, "2", 1e308, 10**400, math.nan, math.inf, None, [], {}])
    | value
    | pattern
)
config = st.fixed_dictionaries({}, optional=dict.fromkeys(SETTINGS, setting)).map(
    lambda found: CONFIG | found
)


@cases(2.0)
@given(config | value | st.dictionaries(text, value, max_size=3), method)
@example(CONFIG | {"rank_pattern": {"(": 2}}, METHODS[0])
@example(CONFIG | {"r": 0}, METHODS[0])
@example(CONFIG | {"lora_alpha": 10**400}, METHODS[0])
def test_any_adapter_config(config: Any, how: Any) -> None:
    with ground() as here:
        sft = adapter(here, "sft", config=config)
        read(sft)
        merge(here, sft, how)


@cases(1.0)
@given(st.binary(max_size=80) | value.map(lambda found: json.dumps(found).encode()), st.booleans())
@example(b"[" * 100_000, True)
def test_any_bytes_beside_the_weights(raw: bytes, origin: bool) -> None:
    """As adapter_config.json, or as the paft.json that names the base."""
    with ground() as here:
        sft = adapter(here, "sft", **{"paft.json": raw}) if origin else adapter(here, "sft", config=raw)
        sound = adapter(here, "other", **{"paft.json": b"{}"})
        base = here.folder("base", **{"model.safetensors": BASE, "config.json": b"{}"})
        attempt(lambda: apply_adapters(base, {"sft": sft, "preference": sound}, here.inside / "out"))


finite = st.floats(-1, 1, width=32) | st.sampled_from([0.0, -0.0, 1e-45, 1e-20, 1e19, -3e38, 3e38])
wild = st.sampled_from([math.nan, math.inf, -math.inf])


@st.composite
def factor_values(draw: st.DrawFn) -> list[float]:
    count = len(DATA) // 4
    values = draw(
        st.lists(draw(st.sampled_from([finite, st.floats(-1, 1, width=32)])), min_size=count, max_size=count)
    )
    for place in draw(st.lists(st.integers(0, count - 1), max_size=1)):
        values[place] = draw(finite | wild)
    return values


@cases(1.0)
@given(factor_values(), method)
def test_any_values_of_the_factors(values: list[float], how: Any) -> None:
    with ground() as here:
        sft = adapter(here, "sft", safetensors(HEADER, struct.pack(f"<{len(values)}f", *values)))
        read(sft)
        report = merge(here, sft, how)
    assert report is None or all(map(math.isfinite, values))


@cases(1.0)
@given(st.dictionaries(names, shape, max_size=5), st.integers(0, 9), method)
def test_any_names_and_shapes(shapes: dict[str, Any], rank: int, how: Any) -> None:
    sound = {
        name: [n for n in found if type(n) is int and 0 <= n < 9]
        for name, found in shapes.items()
        if isinstance(found, list)
    }
    with ground() as here:
        sft = adapter(here, "sft", safetensors(*entries(sound)), CONFIG | {"r": rank})
        read(sft)
        merge(here, sft, how)


@pytest.mark.parametrize(
    "file", ["adapter_model.safetensors", "adapter_model.bin", "adapter_config.json", "paft.json"]
)
def test_a_pickle_is_never_loaded(file: str) -> None:
    """`ground` sees that the pickle's folder is not made."""
    with ground() as here:
        sft = adapter(here, "sft", None if file == "adapter_model.bin" else WEIGHTS)
        (sft / file).write_bytes(here.pickle)
        assert attempt(lambda: read_adapter(sft), sft) is None or file == "paft.json"
        (sound := adapter(here, "other") / "paft.json").write_bytes(b"{}")
        base = here.folder("base", **{"model.safetensors": BASE})
        refused = attempt(
            lambda: apply_adapters(base, {"a": sft, "b": sound.parent}, here.inside / "out"), sft
        )
        assert refused is None and not (here.inside / "out").exists()


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json"])
@pytest.mark.parametrize("target", [*ESCAPES[:3], "/dev/zero", "/dev/stdin", "adapter_config.json"])
def test_a_link_to_something_else_is_no_adapter(file: str, target: str) -> None:
    """A link to a regular file is read as that file, as in the Hugging Face cache: it must still hold an adapter."""
    with ground() as here:
        sft = adapter(here, "sft")
        (sft / file).unlink()
        os.symlink(target, sft / file)
        read(sft)
        assert attempt(lambda: read_adapter(sft), file) is None


@pytest.mark.parametrize(
    "name", ["model.safetensors", "model.safetensors.tmp", "config.json", "config.json.tmp"]
)
def test_a_link_in_the_output_folder_is_replaced_not_followed(name: str) -> None:
    """`ground` sees that the file it leads to stays as it was."""
    with ground() as here:
        base = here.folder("base", **{"model.safetensors": BASE, "config.json": b"{}"})
        (out := here.inside / "out").mkdir()
        (out / name).symlink_to(here.outside / "secret")
        merge_adapters(base, {"sft": adapter(here, "a"), "preference": adapter(here, "b")}, Linear(), out)
        written = {path.name for path in out.iterdir() if path.is_file() and not path.is_symlink()}
        assert written == {"model.safetensors", "config.json"}
