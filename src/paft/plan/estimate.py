"""Tokens, FLOPs, seconds and bytes of a stage before it runs, each marked where it rests on an assumption."""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from paft.config import EvaluateConfig, HardwareConfig, ModelShape, RunConfig, decode
from paft.cost.device_memory import memory_limit, recomputes, training_holds
from paft.cost.flops_and_bytes import (
    branch_flops,
    forward_flops,
    forward_memory,
    item_bytes,
    parameters,
    weight_bytes,
)
from paft.cost.merges import MERGED_PER_SECOND, merge_memory, merge_seconds
from paft.cost.shape import shape_of
from paft.cost.work import other_forwards, pair_work
from paft.graph.configs import SoupStage, TakenStage
from paft.graph.stage import Stage
from paft.plan.measured import merge_work
from paft.plan.precedents import Precedents, Record, median, run_seconds
from paft.plan.rows import Rows, count
from paft.plan.speed import STARTUP_SECONDS, Batches, Speed, largest_batch, mean_batch
from paft.plan.tasks import scored_at_once, scoring
from paft.store.store import Store

TOKENISED_PER_SECOND = 2.5e5
"""One process with a fast tokenizer."""
TAKING_SECONDS = 2.0
"""Of copying and measuring an adapter."""
STEP_SECONDS = 0.04
"""Of one decoding step of transformers' generation, however small the model."""
EVALUATION_BATCH = 512
"""They are pieces of many lengths, each after what it begins with, and go about as fast as batches of this size."""


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
    devices: int = 1
    measured: tuple[str, ...] = ()
    """What was taken from finished stages."""
    assumed: tuple[str, ...] = ()
    """What it rests on otherwise."""
    usd: Figure | None = None


@dataclass(frozen=True)
class Estimator:
    """Estimates the stages of one run from its config, what its store holds, and assumed figures."""

    config: RunConfig
    store: Store
    precedents: Precedents

    def __call__(self, stage: Stage) -> Estimate:
        if stage.name == "data":
            return self.data(stage)
        if isinstance(stage.config, TakenStage | SoupStage) and not stage.kind.runs_base:
            return Estimate(seconds=Figure(TAKING_SECONDS, True))
        shape = shape_of(stage.config.model)
        if shape is None:
            return Estimate(assumed=(f"{stage.config.model.title} is of unknown shape: set model.shape",))
        match stage.name:
            case "merge":
                return self.merge(stage, shape)
            case "evaluate":
                return self.evaluation(stage, shape)
            case "reference":
                return self.reference(stage, shape)
        return self.other(stage, shape)

    def other(self, stage: Stage, shape: ModelShape) -> Estimate:
        """Of any other stage that runs a model of known shape."""
        return self.training(stage, shape)

    def data(self, stage: Stage) -> Estimate:
        rows = count(stage, self.store)
        tokens = rows.tokens * (rows.num + rows.held_out)
        seconds = tokens / TOKENISED_PER_SECOND + STARTUP_SECONDS["data"]
        return Estimate(Figure(tokens, True), seconds=Figure(seconds, True), assumed=rows.assumed)

    def training(self, stage: Stage, shape: ModelShape) -> Estimate:
        """All optimizer steps, and the validation after them."""
        branch, trainer = stage.config.branch, self.config.trainer
        rows = count(stage.inputs["data"], self.store)
        steps = branch.max_steps or branch.epochs * (rows.num // branch.global_batch_size)
        trained = steps * branch.global_batch_size
        row, model = rows.work(branch), stage.config.model
        most = math.ceil(branch.global_batch_size / self.devices)
        what = self.config.running, model, branch, shape, largest_batch(rows, row, trainer, most=most)
        recompute = recomputes(*what, limit=memory_limit(self.hardware))
        flops = branch_flops(
            shape,
            branch,
            row * trained,
            steps=steps,
            forwards=other_forwards(branch, stage.inputs),
            recompute=recompute,
        )
        # held-out rows did not go through a reference stage
        checked = min(rows.held_out, trainer.validation_rows) * (1 + other_forwards(branch, ()))
        held = training_holds(*what, recompute=recompute)
        batches = Batches(
            mean_batch(row, trainer, most=branch.global_batch_size / self.devices),
            mean_batch(row, trainer, most=checked / self.devices),
        )
        work = flops, forward_flops(shape, row * checked)
        return self.estimate(stage, rows, trained, work, self.speed(stage, batches), held)

    def reference(self, stage: Stage, shape: ModelShape) -> Estimate:
        """One forward pass of the training pairs, or of those its first steps read, through the frozen base."""
        rows, only = count(stage.inputs["data"], self.store), stage.config.only
        row = pair_work(rows.prompt, rows.answer, rows.answer)
        num = rows.num if only is None else min(rows.num, only.max_steps * only.global_batch_size)
        batch = largest_batch(rows, row, self.config.trainer, most=num)
        model = stage.config.model
        memory = forward_memory(
            shape,
            batch,
            item_bytes=item_bytes(model, self.hardware),
            weight_bytes=weight_bytes(model, self.hardware),
        )
        tokens = mean_batch(row, self.config.trainer, most=num / self.devices)
        speed, flops = self.speed(stage, Batches(tokens, tokens)), forward_flops(shape, row * num)
        return self.estimate(
            stage, rows, num, (0.0, flops), self._as_before(stage, flops / num, speed), memory
        )

    def _as_before(self, stage: Stage, flops: float, speed: Speed) -> Speed:
        """The rate of finished reference stages on the same pairs, of so many FLOPs each, where there are some."""

        def rate(record: Record) -> float:
            computing = run_seconds(record) - speed.startup
            if computing <= 0:
                raise ValueError("it was over before it is thought to have begun, so it tells no speed")
            return record["metrics"]["rows"] * flops / self.devices / computing

        median_rate = median(self.precedents.references(stage, self.devices), rate)
        if median_rate is None:
            return speed
        said = f"references of these pairs: {median_rate / 1e12:.3g} TFLOP/s"
        return replace(speed, forward=median_rate, measured=(said,), assumed=())

    def estimate(
        self, stage: Stage, rows: Rows, num: int, flops: tuple[float, float], speed: Speed, memory: float
    ) -> Estimate:
        """Of `num` rows whose training takes the first of two numbers of FLOPs and whose scoring the second."""
        unsure = bool(rows.assumed)
        seconds = (flops[0] / speed.training + flops[1] / speed.forward) / self.devices + speed.startup
        return Estimate(
            Figure(rows.tokens * num, unsure),
            Figure(sum(flops), unsure),
            Figure(seconds, unsure or bool(speed.assumed)),
            Figure(memory + self.runtime, unsure),
            self.devices,
            speed.measured,
            rows.assumed + speed.assumed,
        )

    def merge(self, stage: Stage, shape: ModelShape) -> Estimate:
        """Time in proportion to the base's bytes; what finished merges of this base took, where there are some."""
        proved, width = stage.config.method.prove, item_bytes(stage.config.model)
        work = merge_work(shape, stage)
        held = merge_memory(work, item_bytes=width, proved=proved, limit=memory_limit(self.hardware))
        memory = Figure(held + self.runtime)
        method = {"type": type(stage.config.method).__name__}
        finished = self.precedents.of("merge", stage.config.model)
        alike = [r for r in finished if method.items() <= r["identity"]["config"]["method"].items()]
        seconds = None if work.decompositions else median(alike or finished, run_seconds)
        if seconds is not None:
            return Estimate(seconds=Figure(seconds), memory=memory, measured=("merges: their seconds",))
        said = f"merges at {MERGED_PER_SECOND / 1e6:.0f} MB of base per second" + ", and their proof" * proved
        said += ", and singular values of every matrix" if work.decompositions else ""
        seconds = merge_seconds(work, item_bytes=width, proved=proved)
        return Estimate(seconds=Figure(seconds, True), memory=memory, assumed=(said,))

    def evaluation(self, stage: Stage, shape: ModelShape) -> Estimate:
        """Forward passes at the device's rate; a generated token also reads all weights and starts every kernel."""
        config, model, devices = stage.config.evaluate, stage.config.model, self.config.evaluated_on
        batches = Batches(EVALUATION_BATCH, EVALUATION_BATCH)
        # corrected below by what evaluations here took
        speed = Speed.assumed_of(stage, self.hardware, self.precedents, batches)
        base = parameters(shape) * item_bytes(model, self.hardware)

        def modelled(evaluate: EvaluateConfig) -> float:
            asked = scoring(evaluate, model)
            decoding = asked.steps * (base / (1e9 * self.hardware.bandwidth_gb_s) + STEP_SECONDS)
            return (forward_flops(shape, asked.work) / speed.forward + decoding) / devices + speed.startup

        def ratio(record: Record) -> float:
            return run_seconds(record) / modelled(decode(record["identity"]["config"]["evaluate"]))

        correction = median(self.precedents.scored(model, config.backend, devices), ratio)
        work = scoring(config, model).work
        free = memory_limit(self.hardware) - self.runtime - base
        batch = scored_at_once(self.config, shape, model, free=free, most=work.tokens)
        memory = forward_memory(shape, batch, item_bytes=item_bytes(model, self.hardware)) + self.runtime
        lengths = ("items and lengths of the tasks",)
        return Estimate(
            Figure(work.tokens, True),
            Figure(forward_flops(shape, work), True),
            Figure(modelled(config) * (correction or 1.0), correction is None),
            Figure(memory),
            devices,
            () if correction is None else ("evaluations: their seconds, scaled by the tasks' tokens",),
            lengths if correction is not None else lengths + speed.assumed,
        )

    # --- the machine -------------------------------------------------------------------------------

    def speed(self, stage: Stage, batches: Batches) -> Speed:
        return Speed.of(stage, self.hardware, self.precedents, batches)

    @property
    def hardware(self) -> HardwareConfig:
        return self.config.hardware

    @property
    def devices(self) -> int:
        return self.config.trainer.world_size

    @property
    def runtime(self) -> float:
        return 1e9 * self.hardware.runtime_gb
