"""How fast a stage's arithmetic may be expected to go: as trainings of its model went, or by the data sheet."""

from dataclasses import dataclass
from typing import NamedTuple

from paft.config import DType, HardwareConfig, TrainerConfig
from paft.cost.flops_and_bytes import Batch, kind_of
from paft.cost.work import Work
from paft.device import computed_in
from paft.graph.stage import Stage
from paft.plan.precedents import (
    Precedents,
    flops_per_second,
    forward_flops_per_second,
    median,
    startup_seconds,
)
from paft.plan.rows import Rows

STARTUP_SECONDS = {
    "data": 3.0,
    "reference": 0.5,
    "sft": 2.5,
    "preference": 2.5,
    "statistics": 1.5,
    "coefficients": 1.5,
    "generate": 2.5,
    "judge": 2.5,
    "evaluate": 2.5,
}
"""Of a stage beside its arithmetic, for a small model: loading the base, measuring an adapter, building requests."""


class Batches(NamedTuple):
    """Tokens of a micro-batch."""

    training: float
    scoring: float


@dataclass(frozen=True)
class Speed:
    """FLOP/s of one device, the seconds a stage takes beside its arithmetic, and where they are from."""

    training: float
    forward: float
    startup: float
    measured: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()

    @classmethod
    def of(cls, stage: Stage, hardware: HardwareConfig, precedents: Precedents, batches: Batches) -> "Speed":
        """What trainings of the stage's model reached on this hardware, else its peak times assumed efficiencies,
        which are lower for batches of few tokens."""
        trainings = precedents.trainings(stage.name, stage.config.model)
        training, start = median(trainings, flops_per_second), median(trainings, startup_seconds)
        if training is None or start is None:
            return cls.assumed_of(stage, hardware, precedents, batches)
        forward = median(trainings, forward_flops_per_second) or training
        startup = start if stage.kind.trains else STARTUP_SECONDS[stage.name]
        reached = f"{training / 1e12:.3g} TFLOP/s in training, {forward / 1e12:.3g} in scoring"
        said = f"{stage.name} of {stage.config.model.title}: {reached}, {startup:.3g} s to start"
        return cls(training, forward, startup, measured=(said,))

    @classmethod
    def assumed_of(
        cls, stage: Stage, hardware: HardwareConfig, precedents: Precedents, batches: Batches
    ) -> "Speed":
        """The peak for the base's type, measured by trainings where there are some, times the assumed efficiencies."""
        measured_peak = precedents.peak_tflops(stage.config.model.dtype)
        computed = computed_in(stage.config.model.dtype.value, kind_of(hardware))
        wide = hardware.float32_tflops if computed == DType.float32.value else None
        peak = measured_peak or wide or hardware.peak_tflops
        half = hardware.half_speed_tokens
        training = hardware.efficiency * batches.training / (batches.training + half)
        forward = hardware.forward_efficiency * batches.scoring / (batches.scoring + half)
        shares = [f"{forward:.0%} in scoring"]
        if stage.kind.trains:
            shares.insert(0, f"{training:.0%} in training")
        where = "measured on this store" if measured_peak else f"hardware={hardware.name}"
        startup = STARTUP_SECONDS[stage.name]
        said = f"{stage.name}: {' and '.join(shares)} of {peak:.3g} TFLOP/s ({where}), {startup:g} s to start"
        return cls(1e12 * peak * training, 1e12 * peak * forward, startup, assumed=(said,))


def mean_batch(row: Work, trainer: TrainerConfig, *, most: float) -> float:
    """Tokens of a micro-batch of mean rows, of which there are at most `most` at a time."""
    return max(min(trainer.micro_batch_size * row.tokens, most * row.tokens, trainer.micro_batch_tokens), 1.0)


def largest_batch(rows: Rows, row: Work, trainer: TrainerConfig, *, most: int) -> Batch:
    """A micro-batch of at most `most` rows, as much longer than a mean one as the longest sequence is."""
    longest = row.tokens * rows.longest / (rows.prompt + rows.answer)
    num = max(min(trainer.micro_batch_size, most, trainer.micro_batch_tokens // longest), 1)
    return Batch(num * longest, longest)
