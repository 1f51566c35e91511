"""Which file of `conf/hardware/` stands for the GPU of this machine; importing this module loads no torch."""

import logging
import re
from functools import cache
from typing import Any

import yaml

from paft.command.choices import CONF
from paft.config import HardwareConfig
from paft.process.cuda import gpu_name

log = logging.getLogger("paft")

ASSUMED = "a100_80gb"
"""What a plan is for where there is no GPU, or one that no file is of."""


def entry_of(name: str) -> str | None:
    """The file of `conf/hardware/` whose `gpu` is a driver's name of a device; None where none is."""
    gpus = {entry: values["gpu"] for entry, values in entries().items() if "gpu" in values}
    return next((entry for entry, names in gpus.items() if re.fullmatch(names, name)), None)


@cache
def entries() -> dict[str, dict[str, Any]]:
    """Name of a file -> its values."""
    files = sorted((CONF / "hardware").glob("*.yaml"))
    return {file.stem: yaml.safe_load(file.read_text(encoding="utf-8")) for file in files}


def this_gpu(setting: str) -> Any:
    """`${this_gpu:...}` in `conf/hardware/auto.yaml`: a setting of the GPU that this process may use."""
    return entries()[_entry()].get(setting, getattr(HardwareConfig(), setting))


@cache
def _entry() -> str:
    name = gpu_name()
    entry = entry_of(name) if name else None
    if name and entry is None:
        log.warning(
            "%s is in no file of conf/hardware, so that plans and shares of the peak take it for %s; add one, or set "
            "hardware.name, hardware.peak_tflops, hardware.memory_gb and hardware.bandwidth_gb_s",
            name,
            ASSUMED,
        )
    return entry or ASSUMED
