"""How fast a stage's arithmetic may be expected to go: as trainings of its model went, or by the data sheet."""

from dataclasses import dataclass

from paft.config import HardwareConfig
from paft.plan.precedents import (
    Precedents,
    flops_per_second,
    forward_flops_per_second,
    median,
    startup_seconds,
)
from paft.stage import Stage

STARTUP_SECONDS = 3.0
"""Of a stage: loading libraries or the base, measuring an adapter."""


@dataclass(frozen=True)
class Speed:
    """FLOP/s of one device, the seconds a stage takes beside its arithmetic, and where they are from."""

    training: float
    forward: float
    startup: float
    measured: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()

    @classmethod
    def of(cls, stage: Stage, hardware: HardwareConfig, precedents: Precedents) -> "Speed":
        """What trainings of the stage's model reached on this hardware, else its peak times assumed efficiencies."""
        trainings = precedents.trainings(stage.name, stage.config.model)
        training, startup = median(trainings, flops_per_second), median(trainings, startup_seconds)
        if training is None or startup is None:
            return cls._assumed(hardware, precedents.peak_tflops())
        forward = median(trainings, forward_flops_per_second) or training
        reached = f"{training / 1e12:.3g} TFLOP/s in training, {forward / 1e12:.3g} in scoring"
        said = f"{stage.name} of {stage.config.model.name}: {reached}, {startup:.0f} s to start"
        return cls(training, forward, startup, measured=(said,))

    @classmethod
    def _assumed(cls, hardware: HardwareConfig, measured_peak: float | None) -> "Speed":
        peak = measured_peak or hardware.peak_tflops
        where = "measured on this store" if measured_peak else f"hardware={hardware.name}"
        shares = f"{hardware.efficiency:.0%} in training and {hardware.forward_efficiency:.0%} in scoring"
        said = f"{shares} of {peak:.3g} TFLOP/s ({where}), {STARTUP_SECONDS:.0f} s to start"
        training, forward = (1e12 * peak * e for e in (hardware.efficiency, hardware.forward_efficiency))
        return cls(training, forward, STARTUP_SECONDS, assumed=(said,))
