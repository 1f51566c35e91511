"""The GPU of a machine by its driver's name: which file of `conf/hardware/` it is, and what a run then counts with."""

import os
from dataclasses import replace

import pytest

from paft.command import hardware
from paft.command.hardware import ASSUMED, entries, entry_of
from paft.process.cuda import gpu_name

NAMES = {
    "NVIDIA A100-SXM4-40GB": "a100_40gb",
    "NVIDIA A100-PCIE-40GB": "a100_40gb",
    "A100-SXM4-40GB": "a100_40gb",
    "NVIDIA A100-SXM4-80GB": "a100_80gb",
    "NVIDIA A100 80GB PCIe": "a100_80gb",
    "NVIDIA H100 80GB HBM3": "h100_80gb",
    "NVIDIA H200": "h200",
    "NVIDIA L40S": "l40s",
    "NVIDIA GeForce RTX 4090": "rtx4090",
    # others with part of such a name, of other figures
    "NVIDIA H100 PCIe": None,
    "NVIDIA H100 NVL": None,
    "NVIDIA H200 NVL": None,
    "NVIDIA GH200 480GB": None,
    "NVIDIA L40": None,
    "NVIDIA GeForce RTX 4090 D": None,
    "NVIDIA GeForce RTX 4090 Laptop GPU": None,
    "": None,
}


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """`driver(name)`: nvidia-smi says so of the GPU it is asked for; None: there is no nvidia-smi."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def say(name: str | None, asked: str = "0") -> None:
        for cached in (gpu_name, hardware._entry):
            cached.cache_clear()
        program = tmp_path / "nvidia-smi"
        program.unlink(missing_ok=True)
        if name is not None:
            program.write_text(f'#!/bin/sh\ncase "$*" in *--id={asked}) echo "{name}";; *) exit 6;; esac\n')
            program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path) if name is None else f"{tmp_path}{os.pathsep}/bin:/usr/bin")

    yield say
    for cached in (gpu_name, hardware._entry):
        cached.cache_clear()


@pytest.mark.parametrize(("name", "entry"), NAMES.items())
def test_a_drivers_name_is_one_file_or_none(name, entry):
    assert entry_of(name) == entry


def test_every_gpu_has_its_drivers_name_and_no_two_the_same():
    gpus = {name: values for name, values in entries().items() if "gpu" in values}
    named = {name for name in entries() if name not in ("cpu", "auto")}
    assert set(gpus) == named == {entry for entry in NAMES.values() if entry}
    assert len({values["gpu"] for values in gpus.values()}) == len(gpus)


@pytest.mark.parametrize(("name", "entry"), [("NVIDIA H200", "h200"), ("NVIDIA A100-SXM4-40GB", "a100_40gb")])
def test_a_run_counts_with_the_gpu_that_is_there(driver, compose, name, entry):
    driver(name)

    named = compose("trainer=gpu", f"hardware={entry}").hardware
    assert compose("trainer=gpu").hardware == replace(named, gpu=None)
    assert compose("trainer=gpu", "hardware=h100_80gb").hardware.name == "h100_80gb"


def test_it_is_the_first_that_the_process_may_use(driver, compose, monkeypatch):
    driver("NVIDIA L40S", asked="3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")

    assert compose("trainer=gpu").hardware.name == "l40s"


def test_without_a_gpu_a_plan_is_for_an_a100(driver, compose, caplog):
    driver(None)

    assert compose("trainer=gpu").hardware.name == ASSUMED == "a100_80gb"
    assert not caplog.records


def test_an_unknown_gpu_is_said(driver, compose, caplog):
    driver("NVIDIA B300")

    assert compose("trainer=gpu", "hardware.peak_tflops=2000").hardware.peak_tflops == 2000
    assert "NVIDIA B300 is in no file of conf/hardware" in caplog.text


def test_a_trainer_of_named_gpus_asks_no_driver(driver, compose):
    driver("NVIDIA H200")

    assert compose("experiment=zephyr_mistral_7b").hardware.name == "a100_80gb"
