"""Every setting with every kind of value: a typed, finite, keyed config comes out, or the setting is named."""

import copy
import math
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

import hydra
import pytest
from conftest import ROOT
from hostile import attempt, cases, ground, text, value
from hydra.core.global_hydra import GlobalHydra
from hypothesis import event, given
from hypothesis import strategies as st
from omegaconf import DictConfig, ListConfig, OmegaConf

from paft.command.compose import register_schemas, to_config
from paft.config import SCHEMAS, RunConfig, TinyModel, decode
from paft.files.safetensors import read_checkpoint
from paft.graph.build import build
from paft.graph.stage import canonical
from paft.model.base import base_folder

pytestmark = pytest.mark.fuzz

COMMIT = "0" * 40
CELLS: dict[str, tuple[str, ...]] = {
    "demo": ("model=tiny",),
    "files": (
        "model=tiny",
        "data=jsonl",
        f"data.sft.path={ROOT}/README.md",
        f"data.preference.path={ROOT}/README.md",
    ),
    "hub": (
        "model=hub",
        "model.name=x",
        "model.repo=a/b",
        f"model.revision={COMMIT}",
        "data=zephyr",
        "evaluate=open_llm",
    ),
    "orpo": (
        "model=tiny",
        "preference=orpo",
        "merge=dare",
        "logger=csv",
        "trainer=gpu",
        "hardware=a100_80gb",
    ),
    "smollm": ("merge=slerp", "preference=orpo", "strategy=ddp", "evaluate=smoke"),
    "linear": ("model=tiny", "merge=linear", "data=gsm8k_hh"),
    "sum": ("model=mistral_7b", "merge=task_arithmetic", "paradigm=sequential"),
    "dare_linear": ("model=llama3_8b", "merge=dare_linear", "paradigm=sft"),
}


@cache
def composed(cell: str) -> DictConfig:
    """The composed config of a cell, as Hydra hands it over."""
    register_schemas()
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return hydra.compose("train", overrides=list(CELLS[cell]))


@cache
def settings_of(cell: str) -> tuple[str, ...]:
    """Every key of the cell, groups included, as on the command line."""
    found: list[str] = []

    def visit(node: DictConfig, at: str) -> None:
        for name in map(str, node):
            found.append(f"{at}{name}")
            child = None if OmegaConf.is_missing(node, name) else node[name]
            if isinstance(child, DictConfig):
                visit(child, f"{at}{name}.")

    visit(composed(cell), "")
    return tuple(found)


whole = st.sampled_from([0, 1, 2, 3, -1, 2**31, 2**63, 10**30, 10**400]) | st.integers(-20, 4000)
real = st.sampled_from(
    [0.0, -0.0, 0.5, 1.0, 1e-320, 1e-50, 1e50, 1e308, math.nan, math.inf, -math.inf, "1e999"]
)
real |= st.floats() | st.floats(0, 1)
word = st.sampled_from(
    [
        "",
        "true",
        "null",
        "???",
        "${",
        "${seed}",
        "${x}",
        "${oc.env:HOME}",
        "../x",
        "/x",
        "a/b",
        "x\0y",
        "\ud800",
        "-1",
    ]
)
word |= text


def likely(current: object) -> st.SearchStrategy[Any]:
    """Mostly values of the kind that stands there: others are refused before our own checks see them."""
    match current:
        case bool():
            kind: st.SearchStrategy[Any] = st.booleans() | whole
        case int():
            kind = whole
        case float():
            kind = real | whole
        case str():
            kind = word
        case None:
            kind = whole | real | word
        case list():
            kind = st.lists(real | whole | word, max_size=3)
        case _:
            kind = value
    return st.integers(0, 4).flatmap(lambda chance: kind if chance else value)


def current(cell: str, key: str) -> object:
    found = OmegaConf.select(composed(cell), key, throw_on_missing=False)
    return list(found) if isinstance(found, ListConfig) else found


def changed(cell: str, changes: dict[str, Any]) -> DictConfig | None:
    """The composed config with new values, or None where OmegaConf itself refuses one, as Hydra's overrides do."""
    cfg = copy.deepcopy(composed(cell))
    for key, new in changes.items():
        try:
            OmegaConf.update(cfg, key, new)
        except Exception:  # what the command line cannot say is no case of ours
            return None
    return cfg


def refuse_wild(config: object, at: str = "") -> None:
    """Every field has the type its dataclass states, and every number is finite."""
    hints = get_type_hints(type(config))
    for f in fields(config):  # type: ignore[arg-type]
        found = getattr(config, f.name)
        assert fits(found, hints[f.name]), f"{at}{f.name} is {found!r}, not {hints[f.name]}"
        if is_dataclass(found):
            refuse_wild(found, f"{at}{f.name}.")
        if isinstance(found, float):
            assert math.isfinite(found), f"{at}{f.name} is {found!r}"


def fits(found: object, hint: Any) -> bool:
    if hint is Any:
        return True
    if get_origin(hint) is list:
        (inner,) = get_args(hint)
        return isinstance(found, list) and all(fits(item, inner) for item in found)
    if get_origin(hint) is dict:
        return isinstance(found, dict) and all(fits(item, get_args(hint)[1]) for item in found.values())
    if args := get_args(hint):
        return any(fits(found, kind) for kind in args)
    if isinstance(found, float):
        return hint is float and math.isfinite(found)
    if type(found) is int:
        return hint in (int, float)
    return type(found) is hint or (is_dataclass(found) and isinstance(found, hint))


def usable(config: RunConfig) -> None:
    """Typed, keyed, and the same after the trip to another process."""
    refuse_wild(config)
    cell = attempt(lambda: build(config))
    if cell is not None:
        assert len(cell.key) == 16
        assert decode(canonical(config, whole=True)) == config
        for stage in cell.walk():
            assert "/" not in stage.key


@cases(2.0)
@given(st.data(), st.sampled_from(sorted(CELLS)))
def test_any_value_of_any_setting(data: st.DataObject, cell: str) -> None:
    keys = data.draw(st.lists(st.sampled_from(settings_of(cell)), min_size=1, max_size=2, unique=True))
    changes = {key: data.draw(likely(current(cell, key)), label=key) for key in keys}
    cfg = changed(cell, changes)
    config = None if cfg is None else attempt(lambda: to_config(cfg))
    event("taken" if config else "refused before" if cfg is None else "refused")
    if config is not None:
        usable(config)


@cache
def described(cell: str) -> Any:
    return canonical(to_config(composed(cell)), whole=True)


@st.composite
def job(draw: st.DrawFn) -> Any:
    """A config as another process is given it, with some of it replaced, renamed or of another type."""
    node = whole = copy.deepcopy(described(draw(st.sampled_from(["demo", "orpo", "hub"]))))
    for _ in range(draw(st.integers(0, 3))):
        children = [child for child in node.values() if isinstance(child, dict) and child]
        node = draw(st.sampled_from(children)) if children else node
    key = draw(st.sampled_from(sorted(node)))
    match draw(st.integers(0, 3)):
        case 0:
            node[draw(st.sampled_from(["type", "seed"]) | text)] = draw(value)
        case 1:
            node["type"] = draw(
                st.sampled_from([*(kind.__name__ for kind in SCHEMAS.values()), "Path", "str", "decode"])
            )
        case 2:
            del node[key]
        case _:
            node[key] = draw(likely(node[key]))
    return whole


@cases(0.6)
@given(job() | value)
def test_any_job_for_another_process(found: Any) -> None:
    config = attempt(lambda: decode(found))
    if isinstance(config, RunConfig):
        usable(config)


small = st.sampled_from([1, 2, 2, 4]) | st.integers(-1, 9)


@cases(0.05)
@given(
    word.filter(lambda name: "\ud800" not in name and name.isprintable()),
    small.map(lambda n: 8 * n),
    small,
    small,
    st.integers(0, 2),
)
def test_any_tiny_model_is_made_in_the_cache_alone(
    name: str, hidden: int, heads: int, kv: int, layers: int
) -> None:
    sizes = {"hidden_size": hidden, "num_heads": heads, "num_kv_heads": kv, "num_layers": layers}
    config = attempt(lambda: TinyModel(name=name, **sizes), "model.")
    with ground() as here, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(here.inside / "cache"))
        if config is not None:
            folder = base_folder(config)
            assert folder.parent == here.inside / "cache" / "paft" / "models"
            assert read_checkpoint(folder)
