"""Tokens per second, share of the peak and memory: what a training shows, logs and records."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from resumable import configured, stage_of, train

from paft.config import HardwareConfig
from paft.cost.flops_and_bytes import branch_flops
from paft.cost.shape import read_shape
from paft.cost.work import rows_work
from paft.data.tokens import read_preference, read_sft
from paft.model.base import base_folder
from paft.training.history import History
from paft.training.throughput import Throughput, measured_peak, peak_flops
from paft.training.trainer import ProgressBar, make_trainer

RATES = ["train/tokens_per_second", "train/share_of_peak", "train/peak_memory_gb"]


@pytest.fixture(scope="module", params=["sft", "preference"])
def trained(request, tmp_path_factory) -> tuple[str, Path, dict[str, Any]]:
    """(branch, run folder, metrics) of six steps of eight rows: the whole of one epoch."""
    folder = tmp_path_factory.mktemp("trained")
    config = configured(folder, f"{request.param}.max_steps=6", "trainer.micro_batch_size=3")
    return request.param, folder, train(config, request.param, folder / request.param)


@pytest.fixture
def throughput(tmp_path) -> Throughput:
    config = configured(tmp_path)
    stage, context = stage_of(config, "sft")
    return Throughput(stage, base_folder(config.model), context)


def rows_of(branch: str, folder: Path) -> list[Any]:
    stage, context = stage_of(configured(folder), branch)
    read = {"sft": read_sft, "preference": read_preference}[branch]
    return list(read(context.store.path(stage.inputs["data"]), "train"))


def test_recorded_tokens_are_real_ones(trained):
    branch, folder, metrics = trained

    assert metrics["tokens"] == sum(sum(row.lengths) for row in rows_of(branch, folder))


def test_recorded_flops_are_those_of_the_rows(trained):
    branch, folder, metrics = trained
    stage, _ = stage_of(configured(folder), branch)
    shape, config = read_shape(base_folder(stage.config.model) / "config.json"), stage.config.branch

    work = rows_work(rows_of(branch, folder), config)

    expected = branch_flops(
        shape,
        config,
        work,
        steps=6,
        forwards=0 if "reference" in stage.inputs or branch == "sft" else 1,
        recompute=False,
    )
    assert metrics["throughput"]["flops"] == pytest.approx(expected)


def test_recorded_rates_are_averages_over_all_steps(trained):
    _, _, metrics = trained
    seen = metrics["throughput"]

    assert seen["tokens_per_second"] == pytest.approx(metrics["tokens"] / seen["train_seconds"])
    share = seen["flops"] / seen["train_seconds"] / (1e12 * seen["peak_tflops"])
    assert seen["share_of_peak"] == pytest.approx(share)
    assert 0 < seen["share_of_peak"] < 1 and 0.1 < seen["peak_memory_gb"] < 100
    assert seen["validation_seconds"] > 0 and (seen["hardware"], seen["devices"]) == ("cpu", 1)
    assert not metrics.keys() & set(RATES)


def test_every_step_is_logged(trained):
    branch, folder, _ = trained

    history = pd.read_csv(folder / branch / "history.csv")

    steps = history[history["train/loss"].notna()]
    assert len(steps) == 6 and steps[RATES].notna().all(axis=None)
    assert steps["train/peak_memory_gb"].is_monotonic_increasing


def test_throughput_comes_before_callbacks_whose_time_is_not_its_own(throughput, tmp_path):
    stage, context = stage_of(configured(tmp_path, "trainer.progress_bar=true"), "sft")

    history = History(tmp_path, 0)
    trainer = make_trainer(stage, tmp_path, context, [], steps=1, throughput=throughput, history=history)

    assert trainer.callbacks[0] is throughput
    assert any(isinstance(c, ProgressBar) and c.throughput is throughput for c in trainer.callbacks)


def test_progress_bar_says_it_in_words(throughput):
    throughput.last = {"tokens_per_second": 470.4, "share_of_peak": 0.412, "peak_memory_gb": 2.58}

    assert throughput.shown() == {"tokens/s": "470", "of peak": "41%", "memory": "2.6 GB"}


def test_model_of_unknown_shape_has_no_share(throughput, tmp_path):
    unknown = Throughput(throughput.stage, tmp_path, stage_of(configured(tmp_path), "sft")[1])
    unknown.total = {"tokens": 10.0, "seconds": 2.0, "flops": 0.0}

    assert unknown.summary()["tokens_per_second"] == 5.0
    assert "share_of_peak" not in unknown.summary()


def test_peak_of_a_gpu_is_its_data_sheet_and_of_a_cpu_what_it_shows(throughput):
    model = throughput.stage.config.model

    assert peak_flops(HardwareConfig("h100_80gb", "gpu", peak_tflops=989.0), model) == 989e12
    assert peak_flops(HardwareConfig(peak_tflops=1e9), model) == measured_peak(torch.float32)
    assert 1e9 < measured_peak(torch.float32) < 1e14
    assert peak_flops(HardwareConfig(), replace(model)) == throughput.peak  # measured once
