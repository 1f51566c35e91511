"""`plan=true`: what would run, what is there, how long; nothing heavy is loaded, nothing is done."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from conftest import train
from synthetic_store import PAFT, fill, with_lambda

from paft.config import (
    DemoSource,
    DType,
    FileSource,
    HardwareConfig,
    HubSource,
    LocalModel,
    ModelShape,
    Paradigm,
    Quantization,
    Skill,
    StrategyConfig,
    StrategyName,
    Template,
    TinyModel,
    TrainerConfig,
    WheelModel,
)
from paft.cost.flops_and_bytes import parameters
from paft.data.prepare import prepare_preference, prepare_sft
from paft.files.jsonfile import write_json
from paft.graph.build import build
from paft.graph.stage import Stage
from paft.merge.methods import DareTies
from paft.model.base import base_folder, load_tokenizer
from paft.objectives import DPO, KTO, ORPO, KTOLoss, NLLScope, ReferenceFrom
from paft.plan import show_plan
from paft.plan.estimate import Estimate
from paft.plan.rows import expected
from paft.plan.table import estimate
from paft.plan.tasks import scoring
from paft.store.store import Store

SHAPE = ModelShape(576, 1536, 30, 9, 3, 64, 49152, True)
CELL = with_lambda(replace(PAFT, model=replace(PAFT.model, shape=SHAPE)), 1e-4)
COUNTS = {"rows": 64, "tokens": 6400, "label_tokens": 3200, "longest": 150}
SECONDS = {"hardware": "cpu", "devices": 1, "peak_tflops": 2.0, "flops": 1e12, "train_seconds": 4.0}
SPEED = SECONDS | {"validation_seconds": 1.0, "validation_flops": 0.5e12}
A100 = HardwareConfig("a100_80gb", "gpu", peak_tflops=312, memory_gb=80, bandwidth_gb_s=2039)


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")


def lines(output: str) -> dict[str, list[str]]:
    """Key -> words of its line in the printed table."""
    rows = (re.split(r"  +", line.strip()) for line in output.splitlines())
    return {row[1]: row for row in rows if len(row) > 2 and re.fullmatch("[0-9a-f]{16}", row[1])}


def plan(capsys, *configs) -> tuple[dict[str, list[str]], str]:
    show_plan([(c, build(c)) for c in configs])
    text = capsys.readouterr().out
    return lines(text), text


def estimates(config) -> dict[str, Estimate]:
    """Stage name (of data: and branch) -> estimate."""
    stages = {s.key: s for s in build(config).walk()}
    found = estimate({k: (s, config) for k, s in stages.items()}, Store(config.store, verify=False))
    named = {k: f"data {s.config.branch}" if s.name == "data" else s.name for k, s in stages.items()}
    return {named[key]: each for key, each in found.items()}


def stage(config, name: str) -> Stage:
    return next(s for s in build(config).walk() if s.name == name)


def write(config, name: str, *, seconds: float | None = None, host: str | None = None, **metrics) -> None:
    """Rewrite the record of a finished stage."""
    store = Store(config.store)
    record = store.record(stage(config, name))
    record["run"] |= {k: v for k, v in {"seconds": seconds, "host": host}.items() if v is not None}
    record["metrics"] |= metrics
    write_json(store.path(stage(config, name)) / "stage.json", record)


@pytest.fixture
def finished(tmp_path):
    """A cell whose SFT branch took ten seconds, four of them training at 0.25 TFLOP/s."""
    config = replace(CELL, store=str(tmp_path))
    fill(tmp_path, [config])
    write(config, "sft", seconds=10.0, throughput=SPEED, merge_then_evaluate_seconds=3.0)
    return config


# --- the table ----------------------------------------------------------------------------------------


def test_plan_of_an_empty_store_lists_every_stage_as_a_miss(tmp_path, capsys):
    config = replace(CELL, store=str(tmp_path / "stages"))

    table, text = plan(capsys, config)

    assert {key: row[0] for key, row in table.items()} == {s.key: s.name for s in build(config).walk()}
    assert {row[2] for row in table.values()} == {"miss"}
    assert "7 of 7 stages to run: ~" in text and "assumed (~):" in text
    assert "measured on this store" not in text
    assert not (tmp_path / "stages").exists()


def test_plan_of_a_full_store_is_all_hits(finished, capsys):
    table, text = plan(capsys, finished)

    assert {row[2] for row in table.values()} == {"hit"}
    assert "0 of 7 stages to run\n" in text and "assumed" not in text


def test_damaged_or_unfinished_folders_do_not_stop_a_plan(finished, tmp_path, capsys):
    odd = {"stage": "sft", "identity": {"config": {}}, "run": {"host": "h"}}
    speeds = [{"metrics": 1}, {"metrics": {"throughput": [1]}}, {"metrics": {"throughput": {"flops": "x"}}}]
    for i, text in enumerate(['{"stage"', "[]", *(json.dumps(odd | speed) for speed in speeds)]):
        folder = tmp_path / "sft" / f"odd{i}"
        folder.mkdir()
        (folder / "stage.json").write_text(text)

    assert "4 of 7 stages to run" in plan(capsys, replace(finished, seed=1))[1]


def test_stages_behind_a_finished_evaluation_are_not_needed(finished, tmp_path, capsys):
    merge = build(finished).inputs["model"]
    Store(tmp_path).drop(merge)

    table, text = plan(capsys, finished)

    assert table[merge.key][2] == "not needed"
    assert "0 of 7 stages to run" in text


def test_grid_shows_shared_stages_once(tmp_path, capsys):
    configs = [
        replace(with_lambda(CELL, w), merge=m, store=str(tmp_path))
        for w in (1e-4, 1e-3)
        for m in (PAFT.merge, DareTies())
    ]

    table, text = plan(capsys, *configs)

    names = [row[0] for row in table.values()]
    assert {n: names.count(n) for n in names} == {
        "data": 2,
        "sft": 2,
        "reference": 1,
        "preference": 1,
        "merge": 4,
        "evaluate": 4,
    }
    assert "4 cells" in text and "14 of 14 stages to run" in text


@pytest.mark.parametrize("paradigm", Paradigm)
def test_every_paradigm_can_be_planned(tmp_path, capsys, paradigm):
    table, _ = plan(capsys, replace(CELL, paradigm=paradigm, store=str(tmp_path)))

    assert len(table) == {"base": 1, "sft": 4, "preference": 5, "joint": 6}.get(paradigm.value, 7)


def test_model_of_unknown_shape_is_said_to_be_one(tmp_path, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "odd"}')
    (folder / "model.safetensors").write_bytes(b"")
    config = replace(CELL, store=str(tmp_path), model=LocalModel("odd", path=str(folder)))

    table, text = plan(capsys, config)

    assert "?" in table[stage(config, "sft").key]
    assert "odd is of unknown shape: set model.shape" in text


# --- tokens -------------------------------------------------------------------------------------------


def test_tokens_are_certain_once_the_data_stage_is_finished(finished):
    config = replace(finished, sft=replace(finished.sft, epochs=2, global_batch_size=8))
    before = estimates(config)["sft"]

    write(config, "data", train=COUNTS)
    after = estimates(config)["sft"]

    assert before.tokens.assumed and before.flops.assumed and before.memory.assumed
    assert after.tokens == (2 * 6400, False)
    assert not after.flops.assumed and after.assumed == ()


def test_steps_that_fill_no_global_batch_are_not_trained(finished):
    write(finished, "data", train=COUNTS)
    config = replace(finished, sft=replace(finished.sft, global_batch_size=40))

    assert estimates(config)["sft"].tokens.value == 40 * 100


def test_reference_of_dpo_costs_a_forward_pass_unless_it_is_an_input(tmp_path):
    dpo = DPO(reference=ReferenceFrom.online)
    online = estimates(replace(CELL, store=str(tmp_path), preference=dpo))["preference"]
    without = estimates(replace(CELL, store=str(tmp_path), preference=ORPO(nll_scope=NLLScope.response)))

    assert online.flops.value > 1.3 * without["preference"].flops.value


def test_reference_stage_forwards_each_pair_once(finished):
    data = stage(finished, "preference").inputs["data"]
    store = Store(finished.store)
    write_json(store.path(data) / "stage.json", store.record(data) | {"metrics": {"train": COUNTS}})
    all_rows = estimates(replace(finished, preference=DPO(epochs=3)))["reference"]
    cut = estimates(replace(finished, preference=DPO(max_steps=2, global_batch_size=4)))["reference"]

    assert all_rows.tokens == (6400, False)
    assert cut.tokens == (2 * 4 * 100, False)
    assert cut.flops.value == pytest.approx(all_rows.flops.value / 8)


def test_kto_trains_on_both_answers_of_a_pair_and_forwards_each_prompt_once_more(tmp_path):
    cell = replace(CELL, store=str(tmp_path))
    pairs = estimates(replace(cell, preference=DPO()))["preference"]
    with_point, without = (
        estimates(replace(cell, preference=KTO(loss=loss)))["preference"]
        for loss in (KTOLoss.kto, KTOLoss.apo_zero_unpaired)
    )

    assert with_point.tokens == without.tokens == pairs.tokens  # a pair's prompt counts with each answer
    assert without.flops.value > pairs.flops.value  # which forwards it once
    assert 1.3 < with_point.flops.value / without.flops.value < 1.6
    assert any("each split in two" in said for said in with_point.assumed)


def test_kto_is_counted_by_the_rows_that_its_data_stage_wrote(finished, tmp_path):
    config = replace(finished, preference=KTO(epochs=2, global_batch_size=8))
    fill(tmp_path, [config])
    data = stage(config, "preference").inputs["data"]
    store = Store(finished.store)
    write_json(store.path(data) / "stage.json", store.record(data) | {"metrics": {"train": COUNTS}})

    assert estimates(config)["preference"].tokens == (2 * 6400, False)


# --- seconds ------------------------------------------------------------------------------------------


def test_first_training_goes_by_the_assumed_share_of_the_peak(tmp_path):
    found = estimates(replace(CELL, store=str(tmp_path)))["sft"]
    double = replace(
        CELL, store=str(tmp_path), hardware=HardwareConfig(efficiency=0.8, forward_efficiency=1.0)
    )

    shares = "sft: 40% in training and 50% in scoring of 0.8 TFLOP/s (hardware=cpu), 2.5 s to start"
    assert found.seconds.assumed and shares in found.assumed
    assert estimates(double)["sft"].seconds.value - 2.5 == pytest.approx((found.seconds.value - 2.5) / 2)


def test_small_batches_reach_less_of_the_peak(tmp_path):
    hardware = HardwareConfig(efficiency=0.6, half_speed_tokens=8 * 136)  # a step of 8 rows of 136 bytes
    config = replace(CELL, store=str(tmp_path), hardware=hardware)
    one_batch = estimates(replace(config, sft=replace(CELL.sft, global_batch_size=8)))["sft"]
    tiny = replace(config, trainer=replace(CELL.trainer, micro_batch_size=1))

    assert any("sft: 30% in training" in said for said in one_batch.assumed)
    assert any("sft: 7% in training" in said for said in estimates(tiny)["sft"].assumed)


def test_next_training_goes_by_what_the_last_one_reached(finished):
    write(finished, "data", train=COUNTS)

    found = estimates(replace(finished, seed=1))["sft"]

    # ten seconds less four of steps, one of validation and three of another stage
    assert found.seconds == (pytest.approx(found.flops.value / 0.25e12 + 2), False)
    assert found.measured == ("sft of SmolLM2-135M: 0.25 TFLOP/s in training, 0.5 in scoring, 2 s to start",)


@pytest.mark.parametrize("seconds", [0.2, 0.5])
def test_a_reference_that_was_over_at_once_tells_no_speed(finished, seconds):
    write(finished, "data", train=COUNTS)
    expected = estimates(replace(finished, preference=DPO(max_steps=3, global_batch_size=16)))["reference"]
    write(finished, "reference", seconds=seconds, rows=64, devices=1)
    found = estimates(replace(finished, preference=DPO(max_steps=3, global_batch_size=16)))["reference"]
    assert found == expected and found.seconds.value > 0


def test_next_reference_goes_by_what_the_last_one_on_its_pairs_took(finished):
    write(finished, "data", train=COUNTS)
    write(finished, "reference", seconds=4.5, rows=64, devices=1)
    longer = replace(finished, preference=DPO(max_steps=3, global_batch_size=16, lr=1e-9))
    on_two = replace(longer, trainer=TrainerConfig(devices=2), strategy=StrategyConfig(StrategyName.ddp))

    found = estimates(longer)["reference"]

    # half a second to start, then 48 of the 64 pairs
    assert found.seconds.value == pytest.approx(0.5 + 4 * 48 / 64)
    assert found.measured[0].startswith("references of these pairs: ")
    assert not estimates(on_two)["reference"].measured[0].startswith("references")


def test_the_other_branch_is_a_precedent_too(finished):
    assert estimates(replace(finished, seed=1))["preference"].measured


def test_another_model_is_no_precedent(finished):
    other = replace(finished, model=replace(finished.model, seed=1))

    (said,) = (s for s in estimates(other)["sft"].assumed if "peak" in s or "TFLOP/s" in s)
    assert "of 2 TFLOP/s (measured on this store)" in said


def test_the_peak_in_another_type_is_no_precedent(finished):
    other = replace(finished, model=replace(finished.model, dtype=DType.float32))

    (said,) = (s for s in estimates(other)["sft"].assumed if "TFLOP/s" in s)
    assert "of 0.8 TFLOP/s (hardware=cpu)" in said


def test_a_training_counts_for_its_own_base_type_and_storage_alone(finished):
    model = finished.model
    others = [
        replace(model, dtype=DType.float32),
        replace(model, quantization=Quantization.nf4),
        replace(model, hidden_size=2 * model.hidden_size),
        WheelModel(name=model.name, package="p", version="1", file="f", shape=SHAPE),
    ]

    assert estimates(replace(finished, seed=1))["sft"].measured
    for other in others:
        assert not estimates(replace(finished, seed=1, model=other))["sft"].measured


def test_another_hardware_is_no_precedent(finished):
    config = replace(finished, hardware=A100, trainer=TrainerConfig(accelerator="gpu"))

    found = estimates(config)

    assert not any(each.measured for each in found.values())
    assert "of 312 TFLOP/s (hardware=a100_80gb)" in found["sft"].assumed[-1]


def test_merges_and_evaluations_count_on_the_host_of_a_training(finished):
    for name in ("merge", "evaluate"):
        write(finished, name, seconds=12.0)
    here = estimates(finished)

    for name in ("merge", "evaluate"):
        write(finished, name, host="elsewhere")
    there = estimates(finished)

    assert here["merge"].seconds == here["evaluate"].seconds == (pytest.approx(12.0), False)
    assert there["merge"].seconds.assumed and there["evaluate"].seconds.assumed


def test_evaluation_scales_with_its_items(finished):
    write(finished, "evaluate", seconds=12.0)
    few, half = (replace(finished, evaluate=replace(finished.evaluate, limit=n)) for n in (1, 100))

    assert estimates(few)["evaluate"].seconds.value < 0.5
    # of 200 + 200 + 282 + 1000 items 400, the last ones longer
    assert 1.0 < estimates(half)["evaluate"].seconds.value < 6.0


def test_devices_and_nodes_divide_the_time_of_training_alone(tmp_path):
    one = estimates(replace(CELL, store=str(tmp_path)))
    many = replace(
        CELL, trainer=TrainerConfig(devices=2, num_nodes=2), strategy=StrategyConfig(StrategyName.ddp)
    )

    four = estimates(replace(many, store=str(tmp_path)))

    assert four["sft"].seconds.value - 2.5 == pytest.approx((one["sft"].seconds.value - 2.5) / 4)
    assert four["evaluate"].seconds == one["evaluate"].seconds


def test_an_evaluation_is_spread_over_the_gpus_of_a_node(tmp_path):
    one = replace(CELL, store=str(tmp_path), hardware=A100, trainer=TrainerConfig("gpu"))
    trainer, ddp = TrainerConfig("gpu", devices=4, num_nodes=2), StrategyConfig(StrategyName.ddp)
    four = replace(one, trainer=trainer, strategy=ddp)
    alone, spread = (estimates(config)["evaluate"] for config in (one, four))

    assert (alone.devices, spread.devices) == (1, 4) and spread.memory == alone.memory
    assert spread.seconds.value - 2.5 == pytest.approx((alone.seconds.value - 2.5) / 4)

    fill(tmp_path, [one])
    write(one, "sft", throughput=SPEED | {"hardware": "a100_80gb"})
    write(one, "evaluate", seconds=12.0, devices=4)
    assert estimates(four)["evaluate"].seconds == (pytest.approx(12.0), False)
    assert estimates(one)["evaluate"].seconds.assumed


def test_device_hours_count_every_device_of_a_training(tmp_path, capsys):
    one = replace(CELL, store=str(tmp_path))
    many = replace(one, trainer=TrainerConfig(devices=4), strategy=StrategyConfig(StrategyName.ddp))

    assert "device hours" not in plan(capsys, one)[1]
    found = estimates(many)
    hours = sum(e.seconds.value * e.devices for e in found.values()) / 3600
    assert f"~{hours:.3g} device hours" in plan(capsys, many)[1]
    assert (found["sft"].devices, found["merge"].devices) == (4, 1)


# --- memory -------------------------------------------------------------------------------------------


def test_training_that_does_not_fit_is_a_warning(tmp_path, capsys):
    small = replace(CELL, store=str(tmp_path), hardware=HardwareConfig(memory_gb=1.0))

    _, text = plan(capsys, small)

    assert f"warning: {stage(small, 'sft')} needs about" in text and "cpu has 1" in text
    assert "lower trainer.micro_batch_size" in text
    assert "warning" not in plan(capsys, replace(small, hardware=HardwareConfig(memory_gb=999.0)))[1]


def test_sharding_lowers_the_memory_of_a_device(tmp_path):
    on_eight = {"store": str(tmp_path), "trainer": TrainerConfig(devices=8)}
    whole, shared = (
        estimates(replace(CELL, **on_eight, strategy=StrategyConfig(name)))["sft"].memory.value
        for name in (StrategyName.ddp, StrategyName.fsdp)
    )

    assert 0 < whole - shared < 2 * parameters(SHAPE)


# --- on the command line ------------------------------------------------------------------------------


def test_plan_on_the_command_line_runs_and_loads_nothing_heavy(tmp_path):
    code = (
        "import sys; from paft.command.main import main\n"
        "sys.argv = ['train.py', 'plan=true', 'experiment=smoke', 'logs=out']\n"
        "assert main() == 0\n"
        "print('LOADED', *sorted(m for m in sys.modules if '.' not in m))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )

    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.partition("LOADED")[2].split())
    heavy = {
        "torch",
        "transformers",
        "lightning",
        "peft",
        "datasets",
        "lm_eval",
        "wandb",
        "pandas",
        "matplotlib",
    }
    assert loaded & heavy == set()
    assert "7 of 7 stages to run" in done.stdout
    assert not (tmp_path / "out" / "stages").exists()


@pytest.mark.parametrize("words", [(), ("-m", "lambda=1e-4,1e-3", "merge=ties,dare")], ids=["cell", "grid"])
def test_plan_of_cell_and_grid_on_the_command_line(tmp_path, words):
    done = train("plan=true", "experiment=smoke", *words, "logs=out", cwd=tmp_path, COLUMNS="200")

    assert done.returncode == 0, done.stderr
    assert len(lines(done.stdout)) == (14 if words else 7)
    assert not (tmp_path / "out" / "stages").exists()


# --- lengths are the base's tokenizer's --------------------------------------------------------------


@pytest.mark.parametrize("skill", list(Skill))
def test_lengths_of_the_tiny_models_rows_are_in_its_tokens(tmp_path, skill):
    model, pairs = TinyModel(name="tiny", dtype=DType.float32), skill is Skill.honesty
    source = DemoSource(skill=skill, num_rows=256, max_length=512, max_prompt_length=448)
    prepare = prepare_preference if pairs else prepare_sft
    counted = prepare(source, load_tokenizer(base_folder(model), Template.chatml), tmp_path)["train"]

    planned = expected(source, model, pairs=pairs)

    assert planned.num * planned.tokens == pytest.approx(counted["tokens"], rel=0.03)
    answers = planned.answer * (2 if pairs else 1) * planned.num
    assert answers == pytest.approx(counted["label_tokens"], rel=0.03)
    assert planned.longest >= counted["longest"] > 0.9 * planned.longest


def test_the_tiny_model_reads_texts_of_any_kind_as_bytes(tmp_path):
    tiny, other = TinyModel(name="tiny"), WheelModel(name="SmolLM2-135M", package="p", version="1", file="f")
    hub = HubSource(repo="openai/gsm8k", revision="0" * 40, max_length=4096, max_prompt_length=4000)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("x" * 100_000)
    file = FileSource(path=str(rows), max_length=4096, max_prompt_length=4000)

    for source in (hub, file):
        mine, theirs = (expected(source, m, pairs=False) for m in (tiny, other))
        assert (mine.num, mine.tokens) == (theirs.num, 4 * theirs.tokens)
    asked = {m.name: scoring(PAFT.evaluate, m).work.tokens for m in (tiny, other)}
    assert asked["tiny"] == 4 * asked[other.name]
