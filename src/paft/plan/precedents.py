"""What finished stages of a store reached: a plan prefers these figures to assumed ones. Loads no torch."""

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paft.config import Backend, DType, HardwareConfig, ModelConfig
from paft.files.jsonfile import read_object
from paft.graph.stage import Stage, canonical
from paft.graph.stages import TRAINED

Record = dict[str, Any]
"""A stage.json."""


@dataclass(frozen=True)
class Precedents:
    """The stage.json of every finished stage that ran on the planned hardware.

    A training says what it ran on; other stages count where a training of that hardware ran on the same host.
    """

    records: list[Record]

    @classmethod
    def read(cls, store: Path, hardware: HardwareConfig) -> "Precedents":
        records = list(filter(None, map(_record, sorted(store.glob("*/*/stage.json")))))
        ran_on = {r["run"]["host"]: t.get("hardware") for r in records if (t := throughput(r))}
        return cls([r for r in records if _hardware(r, ran_on) == hardware.name])

    def of(self, name: str, model: ModelConfig) -> list[Record]:
        """The finished stages of this name and model."""
        identity = canonical(model)
        return [
            r for r in self.records if r["stage"] == name and r["identity"]["config"].get("model") == identity
        ]

    def scored(self, model: ModelConfig, backend: Backend, devices: int) -> list[Record]:
        """The finished evaluations of this model by this backend on as many devices, whose answers nobody judged."""
        return [
            record
            for record in self.of("evaluate", model)
            if "judge" not in record["identity"]["inputs"]
            and record["identity"]["config"]["evaluate"].get("backend", Backend.hf.value) == backend.value
            and record["metrics"].get("devices", 1) == devices
        ]

    def trainings(self, name: str, model: ModelConfig) -> list[Record]:
        """Of this branch; of the other one where this has none."""
        by_branch = {b: [r for r in self.of(b, model) if throughput(r).get("flops")] for b in TRAINED}
        return by_branch.get(name) or [r for records in by_branch.values() for r in records]

    def references(self, stage: Stage, devices: int) -> list[Record]:
        """The finished reference stages on the pairs of this one, on as many devices."""
        data = stage.inputs["data"].identity
        references = self.of("reference", stage.config.model)
        return [
            r
            for r in references
            if r["identity"]["inputs"]["data"] == data and r["metrics"].get("devices") == devices
        ]

    def peak_tflops(self, dtype: DType) -> float | None:
        """The peak that trainings of bases of this type measured before they started, in products of the type."""
        alike = [r for r in self.records if _dtype(r) == dtype.value]
        return median(alike, lambda r: throughput(r)["peak_tflops"])


def throughput(record: Record) -> dict[str, Any]:
    """What a training stage recorded of its speed; empty for other stages."""
    value = record["metrics"].get("throughput")
    return value if isinstance(value, dict) else {}


def median(records: Iterable[Record], value: Callable[[Record], float]) -> float | None:
    """Of the records that have such a value; None where none has."""
    values = []
    for record in records:
        try:
            values.append(float(value(record)))
        except (ValueError, LookupError, TypeError, ArithmeticError):
            continue
    return statistics.median(values) if values else None


def run_seconds(record: Record) -> float:
    return float(record["run"]["seconds"])


def flops_per_second(record: Record) -> float:
    """One device's, over all training steps."""
    seen = throughput(record)
    return float(seen["flops"] / seen["train_seconds"])


def forward_flops_per_second(record: Record) -> float:
    """The same without gradients, in the validation after a training."""
    seen = throughput(record)
    return float(seen["validation_flops"] / seen["validation_seconds"])


def startup_seconds(record: Record) -> float:
    """Of a training stage: everything but optimizer steps, validation and what callbacks did for other stages."""
    seen, metrics = throughput(record), record["metrics"]
    computing = seen["train_seconds"] + seen["validation_seconds"] + metrics["merge_then_evaluate_seconds"]
    return float(max(record["run"]["seconds"] - computing, 0.0))


def _record(path: Path) -> Record | None:
    try:
        record = read_object(path)
        objects = [record["identity"], record["identity"]["config"], record["metrics"], record["run"]]
        sound = all(isinstance(part, dict) for part in objects) and isinstance(record["run"]["host"], str)
        return record if sound else None
    except (OSError, ValueError, LookupError, TypeError):
        return None  # damaged: reported when it is to be used


def _hardware(record: Record, ran_on: dict[str, str | None]) -> str | None:
    hardware: str | None = throughput(record).get("hardware")
    return hardware or ran_on.get(record["run"]["host"])


def _dtype(record: Record) -> Any:
    model = record["identity"]["config"].get("model")
    return model.get("dtype") if isinstance(model, dict) else None
