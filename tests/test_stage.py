"""What a stage key depends on, and what it does not."""

import json
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from synthetic_store import PAFT, with_lambda

from paft.config import (
    DemoData,
    DemoSource,
    DType,
    FileData,
    FileSource,
    LocalModel,
    LoraConfig,
    Paradigm,
    Skill,
    StrategyConfig,
    StrategyName,
    TaskConfig,
    Template,
    TinyModel,
    TrainerConfig,
    Wandb,
)
from paft.graph.build import build, lambda_of, unique
from paft.graph.stage import Stage, canonical
from paft.merge.methods import DareTies, Linear, Slerp, TaskArithmetic
from paft.objectives import DPO, KTO, ORPO

GOLDEN = Path(__file__).parent / "golden" / "keys.json"
CELL = with_lambda(PAFT, 1e-4)


def keys(config) -> dict[str, str]:
    """Stage -> key of a cell; the two data stages apart."""
    return {s.name if s.name != "data" else f"data_{s.config.branch}": s.key for s in build(config).walk()}


def changed(config) -> set[str]:
    """The stages whose key is another than in CELL."""
    before, after = keys(CELL), keys(config)
    return {name for name in before if after[name] != before[name]}


# --- keys stay what they are --------------------------------------------------------------------------


def golden_keys() -> dict[str, dict[str, str]]:
    cells = {p.value: replace(CELL, paradigm=p) for p in Paradigm}
    cells |= {"orpo": replace(CELL, preference=ORPO()), "kto": replace(CELL, preference=KTO())}
    return {name: keys(config) for name, config in cells.items()}


@pytest.mark.parametrize("cell", [*(p.value for p in Paradigm), "orpo", "kto"])
def test_keys_against_golden(cell):
    # a key that moves throws away every store there is: raise a VERSION on purpose, then run this file
    assert golden_keys()[cell] == json.loads(GOLDEN.read_text())[cell]


INCIDENTAL = {
    "trainer": replace(CELL, trainer=TrainerConfig(micro_batch_size=1, checkpoint_every=3, log_every=7)),
    "recompute": replace(CELL, trainer=TrainerConfig(gradient_checkpointing="auto")),
    "devices": replace(CELL, trainer=TrainerConfig(devices=2), strategy=StrategyConfig(StrategyName.ddp)),
    "logger": replace(CELL, logger=Wandb(project="elsewhere")),
    "callbacks": replace(CELL, callbacks={"mine": {"_target_": "mine.Callback"}}),
    "paths": replace(CELL, logs="/elsewhere", store="/elsewhere/stages"),
    "plan": replace(CELL, plan=True, offline=True),
    "merge.keep": replace(CELL, merge=replace(CELL.merge, keep=False)),
}


@pytest.mark.parametrize("change", INCIDENTAL)
def test_how_to_run_is_in_no_key(change):
    assert changed(INCIDENTAL[change]) == set()


@pytest.mark.parametrize("paradigm", [Paradigm.sft, Paradigm.sequential])
def test_merge_options_are_in_no_baseline_key(paradigm):
    baseline = replace(CELL, paradigm=paradigm)

    assert keys(baseline) == keys(replace(baseline, merge=Slerp(t=0.3, keep=False)))


# --- every field that is identity changes the key -----------------------------------------------------


def other(value: Any) -> Any:
    """Some value of the same type that is not `value`."""
    match value:
        case Enum():
            return next(v for v in type(value) if v is not value)
        case bool():
            return not value
        case int():
            return value + 1
        case float():
            return value / 2 + 0.1
        case str():
            return f"{value}x"
        case list():
            return value[:-1] or ["one"]
        case dict():
            return {**value, "more": "x"}
        case None:
            return 1
    raise AssertionError(f"no other value for {value!r}")


def variants(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """(path, copy of a dataclass with that one field changed), for every identity field at any depth."""
    for f in fields(value):
        if not f.metadata.get("identity", True):
            continue
        old, path = getattr(value, f.name), f"{at}{f.name}"
        if is_dataclass(old):
            for inner, new in variants(old, f"{path}."):
                yield inner, changed_copy(value, f.name, new)
        else:
            yield path, changed_copy(value, f.name, other(old))


def changed_copy(value: Any, name: str, new: Any) -> Any:
    """Like `replace`, without the range checks: here only the key matters."""
    copy = object.__new__(type(value))
    copy.__dict__ = {**value.__dict__, name: new}
    return copy


STAGES = {name: stage for stage in build(CELL).walk() for name in [f"{stage.name}-{stage.key}"]}
VARIANTS = [(name, path, new) for name, s in STAGES.items() for path, new in variants(s.config)]


@pytest.mark.parametrize(
    ("stage", "path", "new"), VARIANTS, ids=[f"{n.split('-')[0]}.{p}" for n, p, _ in VARIANTS]
)
def test_every_identity_field_changes_the_key(stage, path, new):
    before = STAGES[stage]

    assert replace(before, config=new).key != before.key


def test_the_walk_over_fields_finds_the_nested_ones():
    paths = {path for name, path, _ in VARIANTS if name.startswith("sft")}

    assert {"branch.lora.rank", "branch.l1.weight", "branch.lr", "model.dtype", "template", "seed"} <= paths


# --- who depends on what ------------------------------------------------------------------------------


def test_lambda_changes_sft_and_what_follows_it():
    assert changed(with_lambda(PAFT, 1e-3)) == {"sft", "merge", "evaluate"}


def test_preference_settings_change_preference_and_what_follows_it():
    assert changed(replace(CELL, preference=DPO(lr=2e-4, beta=0.2))) == {"preference", "merge", "evaluate"}


def test_merge_settings_change_merge_and_evaluate():
    assert changed(replace(CELL, merge=DareTies())) == {"merge", "evaluate"}


def test_tasks_change_evaluate_alone():
    tasks = {**CELL.evaluate.tasks, "more": TaskConfig("paft_honesty", "acc,none", num_fewshot=2)}

    assert changed(replace(CELL, evaluate=replace(CELL.evaluate, tasks=tasks))) == {"evaluate"}


def test_seed_changes_both_branches_and_no_data():
    assert changed(replace(CELL, seed=7)) == {"sft", "preference", "merge", "evaluate"}


def test_template_and_model_change_everything():
    assert changed(replace(CELL, model=TinyModel(name="SmolLM2-135M", seed=1))) == set(keys(CELL))


def test_sequential_preference_depends_on_the_sft_adapter():
    one, two = (keys(replace(with_lambda(PAFT, w), paradigm=Paradigm.sequential)) for w in (1e-4, 1e-3))

    assert one["preference"] != two["preference"]
    assert one["preference"] != keys(CELL)["preference"]


def test_grid_shares_what_does_not_differ():
    merges = (Linear(), DareTies(), TaskArithmetic())
    cells = [build(replace(with_lambda(PAFT, w), merge=m)) for w in (0.0, 1e-4) for m in merges]

    names = [s.name for s in unique(cells)]

    assert {n: names.count(n) for n in names} == {
        "data": 2,
        "sft": 2,
        "reference": 1,
        "preference": 1,
        "merge": 6,
        "evaluate": 6,
    }


def test_lambda_of_a_graph():
    assert lambda_of(build(CELL)) == 1e-4
    assert lambda_of(build(replace(CELL, paradigm=Paradigm.preference))) is None
    assert lambda_of(build(replace(CELL, paradigm=Paradigm.base))) is None


def test_walk_gives_inputs_first_and_each_once():
    stages = list(build(replace(CELL, paradigm=Paradigm.sequential)).walk())

    places = {s.key: i for i, s in enumerate(stages)}
    assert len(places) == len(stages) == 7
    assert all(places[i.key] < places[s.key] for s in stages for i in s.inputs.values())


# --- files enter by content ---------------------------------------------------------------------------


def file_cell(path: Path):
    source = FileSource(path=str(path))
    return replace(CELL, data=FileData(name="mine", sft=source, preference=source))


def test_moved_file_keeps_every_key_and_edited_file_changes_it(tmp_path):
    here, there, edited = tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "c.jsonl"
    here.write_text("one\n")
    there.write_text("one\n")
    edited.write_text("two\n")

    assert keys(file_cell(here)) == keys(file_cell(there))
    assert set(keys(file_cell(here)).values()).isdisjoint(keys(file_cell(edited)).values())


def test_file_edited_in_place_is_a_new_input(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("one\n")
    before = keys(file_cell(path))
    path.write_text("three\n")

    assert keys(file_cell(path)) != before


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.jsonl is not a file"):
        build(file_cell(tmp_path / "gone.jsonl"))


def local_cell(folder: Path, weights: bytes):
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return replace(CELL, model=LocalModel(name="mine", path=str(folder)))


def test_local_model_is_its_content(tmp_path):
    one, same, other_ = (local_cell(tmp_path / n, w) for n, w in (("a", b"1"), ("b", b"1"), ("c", b"2")))

    assert keys(one) == keys(same)
    assert keys(one)["evaluate"] != keys(other_)["evaluate"]


def test_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is not a model folder: it needs config\.json and \*\.safetensors"):
        build(replace(CELL, model=LocalModel(name="mine", path=str(tmp_path))))


# --- canonical form -----------------------------------------------------------------------------------


def key(config: Any) -> str:
    return Stage("sft", 1, config).key


def test_dict_order_is_irrelevant():
    assert key({"a": 1, "b": 2}) == key({"b": 2, "a": 1})


def test_list_order_is_not():
    assert key([1, 2]) != key([2, 1])


def test_tuple_is_a_list_and_enum_its_value():
    assert canonical((1, DType.bfloat16)) == [1, "bfloat16"]


def test_type_names_matter():
    assert canonical(Linear())["type"] == "Linear"
    assert key(DPO()) != key(ORPO())
    assert key(changed_copy(DPO(), "beta", 0.1)) == key(DPO())


@pytest.mark.parametrize("value", [1e-4, 0.1 + 0.2, 1e300, 5e-324])
def test_float_keys_survive_text(value):
    assert key(LoraConfig(alpha=value)) == key(LoraConfig(alpha=float(repr(value))))


@pytest.mark.parametrize(
    "same", [("lambda=0", "lambda=0.0"), ("lambda=1e-4", "lambda=0.0001"), ("lambda=1", "lambda=1.0")]
)
def test_spelling_of_a_number_is_irrelevant(compose, same):
    one, two = (build(compose(words)).key for words in same)

    assert one == two


def test_version_name_and_input_names_are_identity():
    data = Stage("data", 1, {})
    stage = Stage("sft", 1, {}, {"data": data})

    others = [
        Stage("sft", 2, {}, {"data": data}),
        Stage("preference", 1, {}, {"data": data}),
        Stage("sft", 1, {}, {"sft": data}),
        Stage("sft", 1, {}, {"data": Stage("data", 2, {})}),
        Stage("sft", 1, {}),
    ]
    assert len({s.key for s in [stage, *others]}) == 6


def test_whole_holds_what_no_key_does():
    source = FileSource(path="a.jsonl")

    assert "path" not in canonical(source)
    assert canonical(source, whole=True)["path"] == "a.jsonl"


def test_what_is_not_data_is_refused():
    with pytest.raises(TypeError, match="only dataclasses"):
        canonical({"path": Path("a")})


def test_not_a_number_has_no_key():
    with pytest.raises(ValueError, match="not JSON compliant"):
        key({"x": float("nan")})


def test_demo_source_rows_are_identity():
    data = DemoData(name="demo", sft=DemoSource(skill=Skill.tool_call, num_rows=7))

    assert changed(replace(CELL, data=data)) == {"data_sft", "sft", "merge", "evaluate"}


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(golden_keys(), indent=1) + "\n")
    sys.exit(0)


# --- results that were wrong are not taken for right ones --------------------------------------------------


def versions(config) -> dict[str, int]:
    return {s.name: s.version for s in build(config).walk()}


def test_trainings_with_dropout_have_a_higher_version():
    lora = replace(CELL.sft.lora, dropout=0.05)
    raised = versions(replace(CELL, sft=replace(CELL.sft, lora=lora)))
    assert raised == versions(CELL) | {"sft": versions(CELL)["sft"] + 1}


@pytest.mark.parametrize(
    ("settings", "raised"),
    [
        ({"model_type": "llama", "attention_dropout": 0.0}, 0),
        ({"model_type": "llama", "attention_dropout": 0.1}, 1),
        ({"model_type": "phi"}, 1),
    ],
)
def test_stages_that_run_a_base_of_another_kind_have_a_higher_version(tmp_path, settings, raised):
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "model.safetensors").write_bytes(b"")
    local = versions(replace(CELL, model=LocalModel(name="mine", path=str(tmp_path))))
    before = versions(CELL)
    forwards = {"reference", "sft", "preference", "evaluate"}
    # answers in chatml may have run on, whatever the base
    expected = {name: before[name] + (raised if name in forwards else 0) for name in before} | {
        "evaluate": before["evaluate"] + 1
    }
    assert local == expected


def test_rows_that_people_bring_have_a_higher_version(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}")
    source = FileSource(path=str(tmp_path / "rows.jsonl"))
    brought = versions(replace(CELL, data=FileData(sft=source, preference=source)))
    assert brought == versions(CELL) | {"data": versions(CELL)["data"] + 1}


def test_answers_that_ended_with_the_eos_keep_their_version(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mistral"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    data = replace(CELL.data, template=Template.zephyr)
    local = replace(CELL, model=LocalModel(name="mine", path=str(tmp_path)), data=data)
    assert versions(local) == versions(CELL)
