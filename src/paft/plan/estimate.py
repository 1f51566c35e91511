"""Tokens, FLOPs, seconds and bytes of a stage before it runs, each marked where it rests on an assumption."""

import os
from dataclasses import dataclass
from typing import NamedTuple

from paft.config import (
    EvaluateConfig,
    HardwareConfig,
    ModelShape,
    RunConfig,
    StrategyName,
    TrainerConfig,
    decode,
)
from paft.cost import (
    Batch,
    branch_flops,
    forward_flops,
    forward_memory,
    item_bytes,
    merge_memory,
    parameters,
    shape_of,
    training_memory,
)
from paft.plan.precedents import Precedents, Record, flops_per_second, median, run_seconds, startup_seconds
from paft.plan.rows import Rows, count
from paft.plan.tasks import scoring
from paft.stage import Stage, Store
from paft.work import Work, forwards_reference, pair_work

STARTUP_SECONDS = 3.0
"""Of a stage: loading libraries or the base, measuring an adapter."""
TOKENISED_PER_SECOND = 2.5e5
"""One process with a fast tokenizer."""
MERGED_PER_SECOND = 1e8
"""Bytes of the base read, merged in float32 and written."""
EVALUATION_TOKENS = 4096
"""Forwarded at once: `evaluate.tree.MAX_TOKENS`."""


class Figure(NamedTuple):
    """A number of the plan."""

    value: float
    assumed: bool = False


@dataclass(frozen=True)
class Estimate:
    """What running a stage takes; None where there is nothing to say or no way to know."""

    tokens: Figure | None = None
    flops: Figure | None = None
    seconds: Figure | None = None
    memory: Figure | None = None
    """Bytes on one device."""
    measured: tuple[str, ...] = ()
    """What was taken from finished stages."""
    assumed: tuple[str, ...] = ()
    """What it rests on otherwise."""


@dataclass(frozen=True)
class Speed:
    """FLOP/s of one device, the seconds a stage takes beside its arithmetic, and where both are from."""

    flops: float
    startup: float
    measured: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Estimator:
    """Estimates the stages of one run from its config, what its store holds, and assumed figures."""

    config: RunConfig
    store: Store
    precedents: Precedents

    def __call__(self, stage: Stage) -> Estimate:
        if stage.name == "data":
            return self.data(stage)
        shape = shape_of(stage.config.model)
        if shape is None:
            return Estimate(assumed=(f"{stage.config.model.name} is of unknown shape: set model.shape",))
        match stage.name:
            case "merge":
                return self.merge(stage, shape)
            case "evaluate":
                return self.evaluation(stage, shape)
            case "reference":
                return self.reference(stage, shape)
        return self.training(stage, shape)

    def data(self, stage: Stage) -> Estimate:
        rows = count(stage, self.store)
        tokens = rows.tokens * (rows.num + rows.held_out)
        seconds = tokens / TOKENISED_PER_SECOND + STARTUP_SECONDS
        return Estimate(Figure(tokens, True), seconds=Figure(seconds, True), assumed=rows.assumed)

    def training(self, stage: Stage, shape: ModelShape) -> Estimate:
        """All optimizer steps, and the validation after them."""
        branch, trainer = stage.config.branch, self.config.trainer
        rows = count(stage.inputs["data"], self.store)
        steps = branch.max_steps or branch.epochs * (rows.num // branch.global_batch_size)
        trained = steps * branch.global_batch_size
        reference, recompute = forwards_reference(branch, stage.inputs), trainer.gradient_checkpointing
        row = rows.work(branch)
        flops = branch_flops(
            shape, branch, row * trained, steps=steps, reference=reference, recompute=recompute
        )
        checked = min(rows.held_out, trainer.validation_rows) * (2 if reference else 1)
        memory = training_memory(
            shape,
            branch.lora,
            largest_batch(rows, row, trainer),
            item_bytes=item_bytes(stage.config.model),
            shards=self.shards,
            recompute=recompute,
            stored_scores=self.hardware.accelerator == "cpu" and stage.config.model.attention == "auto",
        )
        flops += forward_flops(shape, row * checked)
        held = sum(memory.values()) + self.hardware.fragmentation * memory["activations"]
        return self._forwarding(stage, rows, trained, flops, held)

    def reference(self, stage: Stage, shape: ModelShape) -> Estimate:
        """One forward pass of every pair through the frozen base."""
        rows = count(stage.inputs["data"], self.store)
        row, num = pair_work(rows.prompt, rows.answer, rows.answer), rows.num + rows.held_out
        batch = largest_batch(rows, row, self.config.trainer)
        memory = forward_memory(shape, batch, item_bytes=item_bytes(stage.config.model))
        return self._forwarding(stage, rows, num, forward_flops(shape, row * num), memory)

    def _forwarding(self, stage: Stage, rows: Rows, num: int, flops: float, memory: float) -> Estimate:
        speed, unsure = self.speed(stage), bool(rows.assumed)
        seconds = flops / speed.flops / self.devices + speed.startup
        return Estimate(
            Figure(rows.tokens * num, unsure),
            Figure(flops, unsure),
            Figure(seconds, unsure or bool(speed.assumed)),
            Figure(memory + self.runtime, unsure),
            speed.measured,
            rows.assumed + speed.assumed,
        )

    def merge(self, stage: Stage, shape: ModelShape) -> Estimate:
        """Time in proportion to the base's bytes; what finished merges of this base took, where there are some."""
        memory = Figure(merge_memory(shape) + self.runtime)
        method = {"type": type(stage.config.method).__name__}
        finished = self.precedents.of("merge", stage.config.model)
        alike = [r for r in finished if method.items() <= r["identity"]["config"]["method"].items()]
        seconds = median(alike or finished, run_seconds)
        if seconds is not None:
            return Estimate(seconds=Figure(seconds), memory=memory, measured=("merges: their seconds",))
        base = parameters(shape) * item_bytes(stage.config.model)
        said = f"merges at {MERGED_PER_SECOND / 1e6:.0f} MB of base per second"
        return Estimate(seconds=Figure(base / MERGED_PER_SECOND, True), memory=memory, assumed=(said,))

    def evaluation(self, stage: Stage, shape: ModelShape) -> Estimate:
        """Forward passes at the device's rate, and for generated text a read of all weights per token."""
        config, model, speed = stage.config.evaluate, stage.config.model, self.speed(stage)
        base = parameters(shape) * item_bytes(model)

        def modelled(evaluate: EvaluateConfig) -> float:
            asked = scoring(evaluate)
            reading = asked.steps * base / (1e9 * self.hardware.bandwidth_gb_s)
            return forward_flops(shape, asked.work) / speed.flops + reading + speed.startup

        def ratio(record: Record) -> float:
            return run_seconds(record) / modelled(decode(record["identity"]["config"]["evaluate"]))

        found = median(self.precedents.of("evaluate", model), ratio)
        work = scoring(config).work
        batch = Batch(min(EVALUATION_TOKENS, work.tokens), EVALUATION_TOKENS)
        memory = forward_memory(shape, batch, item_bytes=item_bytes(model)) + self.runtime
        lengths = ("items and lengths of the tasks",)
        return Estimate(
            Figure(work.tokens, True),
            Figure(forward_flops(shape, work), True),
            Figure(modelled(config) * (found or 1.0), found is None),
            Figure(memory),
            () if found is None else ("evaluations: their seconds, scaled by the tasks' tokens",),
            lengths if found is not None else lengths + speed.assumed,
        )

    # --- the machine -------------------------------------------------------------------------------

    def speed(self, stage: Stage) -> Speed:
        """What trainings of this model reached on this hardware, or else its peak times the assumed efficiency."""
        trainings = self.precedents.trainings(stage.name, stage.config.model)
        reached, startup = median(trainings, flops_per_second), median(trainings, startup_seconds)
        if reached is not None and startup is not None:
            said = (
                f"{stage.config.model.name}: {reached / 1e12:.3g} TFLOP/s a device, {startup:.0f} s to start"
            )
            return Speed(reached, startup, measured=(said,))
        measured = self.precedents.peak_tflops()
        peak = measured or self.hardware.peak_tflops
        where = "measured on this store" if measured else f"hardware={self.hardware.name}"
        said = f"{self.hardware.efficiency:.0%} of {peak:.3g} TFLOP/s ({where}), {STARTUP_SECONDS:.0f} s to start"
        return Speed(1e12 * peak * self.hardware.efficiency, STARTUP_SECONDS, assumed=(said,))

    @property
    def hardware(self) -> HardwareConfig:
        return self.config.hardware

    @property
    def devices(self) -> int:
        return self.config.trainer.devices * self.config.trainer.num_nodes

    @property
    def shards(self) -> int:
        """Devices that hold one copy of the model among them."""
        match self.config.strategy.name:
            case StrategyName.fsdp:
                return self.devices
            case StrategyName.fsdp_hybrid:
                return self.config.trainer.devices
        return 1

    @property
    def runtime(self) -> float:
        return 1e9 * self.hardware.runtime_gb


def largest_batch(rows: Rows, row: Work, trainer: TrainerConfig) -> Batch:
    """A micro-batch of rows as much longer than a mean one as the longest sequence is."""
    longest = row.tokens * rows.longest / (rows.prompt + rows.answer)
    num = max(min(trainer.micro_batch_size, trainer.micro_batch_tokens // longest), 1)
    return Batch(num * longest, longest)


def memory_limit(hardware: HardwareConfig) -> float:
    """Bytes of one device."""
    if hardware.memory_gb is not None:
        return 1e9 * hardware.memory_gb
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
