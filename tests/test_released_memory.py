"""A model's memory goes when its stage ends, and what is said of a stage's peak is that stage's.

No test here has a GPU: reference counts are the same on every device, and the allocator is a stand-in that only counts.
"""

import gc
import os
import weakref
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from resumable import configured, stage_of, train
from tiny import BRANCHES, MODEL, make
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from paft.command import devices, pipeline
from paft.config import HardwareConfig, LoraConfig, TrainerConfig
from paft.model.base import base_folder
from paft.model.layers.fuse import unfuse
from paft.model.paths import paths_of
from paft.model.policy import FrozenPolicy, Policy
from paft.process.cuda import WORKSPACE, release_memory
from paft.proof.base import load_base
from paft.training.module import BranchModule
from paft.training.throughput import Throughput
from paft.training.trainer import _devices

GPU = HardwareConfig("h100_80gb", "gpu", peak_tflops=989.0, memory_gb=80.0)


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


# --- what nothing refers to any more ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["frozen", "adapted"])
def test_a_base_is_freed_by_reference_counting_alone(no_collector, kind):
    base = load_base(base_folder(MODEL), MODEL)
    policy = FrozenPolicy(base) if kind == "frozen" else Policy(base, LoraConfig(rank=2))
    assert paths_of(base).fused
    ids = torch.arange(3, 13)[None]
    policy(ids, ids, torch.tensor([10]))
    layers = [m for m in base.modules() if isinstance(m, LlamaMLP | LlamaRMSNorm)]
    left = [weakref.ref(m) for m in [*layers, base]]

    del base, policy, layers

    assert [ref() for ref in left] == [None] * len(left)


def test_fused_layers_get_their_own_class_back():
    base = load_base(base_folder(MODEL), MODEL)
    FrozenPolicy(base)
    FrozenPolicy(base)  # twice is once
    assert not any(type(m) in (LlamaMLP, LlamaRMSNorm) for m in base.modules())

    unfuse(base)

    assert {type(m) for m in base.modules() if isinstance(m, LlamaMLP | LlamaRMSNorm)} == {
        LlamaMLP,
        LlamaRMSNorm,
    }


def models() -> set[int]:
    return {id(thing) for thing in gc.get_objects() if isinstance(thing, BranchModule | PreTrainedModel)}


@pytest.mark.parametrize("branch", ["sft", "preference"])
def test_a_training_leaves_no_model_behind(tmp_path, branch):
    gc.collect()
    before = models()

    train(configured(tmp_path, f"{branch}.max_steps=1"), branch, tmp_path / branch)

    gc.collect()
    assert not models() - before


# --- the device's allocator ---------------------------------------------------------------------------


class Ring:
    def __init__(self) -> None:
        self.ring = self


def test_cycles_go_before_the_allocator_gives_back(monkeypatch, no_collector):
    left, seen = weakref.ref(Ring()), []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: seen.append(left()))
    release_memory()
    assert left() is not None and not seen  # nothing to give back where CUDA is not at work

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    release_memory()

    assert seen == [None]


def test_memory_is_given_back_before_and_after_a_stage_and_when_it_fails(tmp_path, monkeypatch):
    config = configured(tmp_path)
    stage, context = stage_of(config, "sft")
    seen: list[str] = []

    def work(*_: Any) -> dict[str, Any]:
        seen.append("stage")
        raise ValueError("no")

    monkeypatch.setattr(pipeline, "release_memory", lambda: seen.append("released"))
    monkeypatch.setattr(pipeline, "on_devices", work)
    with pytest.raises(ValueError, match="no"):
        context.run(stage, {}, tmp_path)

    assert seen == ["released", "stage", "released"]


@pytest.mark.parametrize(("accelerator", "kept"), [("cpu", True), ("gpu", False)])
def test_only_a_cpu_run_keeps_what_the_host_freed(tmp_path, monkeypatch, accelerator, kept):
    seen: list[bool] = []
    monkeypatch.setattr(devices, "keep_freed_memory", lambda: seen.append(True))
    monkeypatch.setattr(devices, "module_of", lambda _: SimpleNamespace(run=lambda *_: {}))
    config: Any = SimpleNamespace(trainer=TrainerConfig(accelerator=accelerator))

    devices._here(None, {}, tmp_path, None, config)

    assert bool(seen) == kept


def test_a_trained_module_stays_where_it_is_between_fit_and_validation():
    module = make(BRANCHES["sft"]).to("meta")

    assert module.cpu() is module
    assert {p.device.type for p in module.parameters()} == {"meta"}


# --- the peak of a stage ------------------------------------------------------------------------------


class Allocator:
    """Counts as torch.cuda does: the most since it was told to forget is never less than what is held."""

    def __init__(self) -> None:
        self.held = self.most = 0.0

    def hold(self, gb: float, *, at_most: float = 0.0) -> None:
        self.held, self.most = gb, max(self.most, gb, at_most)

    def max_memory_allocated(self) -> float:
        return 1e9 * self.most

    def reset_peak_memory_stats(self) -> None:
        self.most = self.held


def test_the_peak_is_of_this_training_and_not_of_other_stages(tmp_path, monkeypatch):
    allocator = Allocator()
    for name in ("max_memory_allocated", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, getattr(allocator, name))
    stage, context = stage_of(configured(tmp_path), "sft")
    context = replace(context, running=replace(context.running, hardware=GPU))
    throughput = Throughput(stage, base_folder(MODEL), context)
    trainer: Any = SimpleNamespace(world_size=1)
    module: Any = SimpleNamespace(log_dict=lambda *_, **__: None)
    batch: Any = SimpleNamespace(rows=[SimpleNamespace(lengths=[8], row_tokens=8, num_labels=4)])

    allocator.hold(15, at_most=70)  # an earlier stage
    for most in (30, 40, 35):
        throughput.on_train_batch_start(trainer, module, batch, 0)
        allocator.hold(16, at_most=most)
        throughput.on_train_batch_end(trainer, module, None, batch, 0)
        allocator.hold(16, at_most=60)  # a merged model that is scored between two steps

    assert throughput.last["peak_memory_gb"] == 40
    assert throughput.memory == 40e9


# --- the same bits twice ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [((), True), (("trainer=gpu",), False), (("trainer=gpu", "trainer.deterministic=true"), True)],
)
def test_a_gpu_is_deterministic_where_it_is_asked_to_be(tmp_path, monkeypatch, words, expected):
    monkeypatch.delenv(WORKSPACE, raising=False)
    config = configured(tmp_path, *words)

    pipeline.prepare(config, [])

    assert _devices(config.running)["deterministic"] is expected
    assert (os.environ.get(WORKSPACE) == ":4096:8") == config.trainer.deterministic
