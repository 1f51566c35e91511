"""What was proved of a base, kept in the cache: once for every base, kind of device and version of the libraries.

Importing this module loads no torch: a plan says what is known. The largest difference also stands in the stage.json of
every stage that ran the base.
"""

import json
import logging
import time
from dataclasses import asdict, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from paft.config import DType, ModelConfig, TrainerConfig
from paft.files.cache import cache_folder
from paft.files.fingerprint import text_digest
from paft.files.jsonfile import read_object, write_json
from paft.graph.stage import canonical

if TYPE_CHECKING:
    from paft.model.paths import FastPaths

log = logging.getLogger("paft")

PROOF = 2
"""Raise when the paths, or what is asked of them, change."""
LIBRARIES = ("torch", "transformers")


def device_of(trainer: TrainerConfig) -> str:
    """The kind of device that a run's models are on: `cuda` or `cpu`."""
    return "cuda" if trainer.accelerator == "gpu" else "cpu"


def proof_file(model: ModelConfig, device: str) -> Path:
    """`bases/<key>.json` in the cache. However a base is stored while it trains, it is proved in float32."""
    base = canonical(replace(model.as_released(), dtype=DType.float32))
    text = json.dumps([PROOF, base, device, list(_versions())], sort_keys=True)
    return cache_folder("bases") / f"{text_digest(text)}.json"


@cache
def _versions() -> tuple[str, ...]:
    return tuple(version(name) for name in LIBRARIES)


def known(model: ModelConfig, device: str) -> dict[str, Any] | None:
    """What was found of a base; None where nothing was, or its file is damaged."""
    try:
        return read_object(proof_file(model, device))
    except ValueError:
        return None


def proved_paths(folder: Path, model: ModelConfig, device: str) -> "FastPaths":
    """The fast paths of the base in `folder`, as found before or now, by one process for all.

    Raises `ValueError` for a base that is no causal language model.
    """
    from paft.model.paths import FastPaths, HeadForm

    proved = known(model, device) or _prove_once(folder, model, device)
    head = proved["paths"]["head"]
    return FastPaths(**(proved["paths"] | {"head": HeadForm(**head) if head else None}))


def _prove_once(folder: Path, model: ModelConfig, device: str) -> dict[str, Any]:
    file = proof_file(model, device)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{file}.lock")
        lock.acquire()
    except OSError as error:  # a home that may only be read keeps nobody from training
        log.warning(
            "%s cannot be written (%s): the base is proved again each time", file.parent, error.strerror
        )
        return _prove(folder, model, file, device)
    try:
        proved = known(model, device)
        if proved is None:
            proved = _prove(folder, model, file, device)
            write_json(file, proved)
        return proved
    finally:
        lock.release()


def _prove(folder: Path, model: ModelConfig, file: Path, device: str) -> dict[str, Any]:
    from paft.proof.base import prove_base

    started = time.monotonic()
    proof = prove_base(folder, model, device=device)
    proved = {"base": model.name, "device": device, "seconds": round(time.monotonic() - started, 3)}
    proved |= {"largest_difference": max(proof.differences.values(), default=0.0)}
    proved |= {name: version(name) for name in LIBRARIES} | asdict(proof)
    log.info("%-12s %s  proved %6.1f s  %s", "base", file.stem, proved["seconds"], describe(model, proved))
    return proved


def describe(model: ModelConfig, proved: dict[str, Any] | None) -> str:
    """One line for a log and a plan: how far the fast paths are from the base's own forward, or why not taken."""
    if proved is None:
        return f"{model.title} is compared with its own forward first, once, in seconds"
    plain = [f"{name} ({why})" for name, why in proved["replaced"].items()]
    said = f"{model.title} is within {proved['largest_difference']:.1e} nats a token of its own forward"
    return said if not plain else f"{said}; the plain way takes the place of: {'; '.join(plain)}"
