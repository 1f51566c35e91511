"""How to run: none of this may change a result."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from paft.config.checks import Typed, require


@dataclass
class HardwareConfig(Typed):
    """What one device can do; a plan and the share of peak shown while training are worked out from it."""

    name: str = "cpu"
    """What plans call it."""
    accelerator: str = "cpu"
    """The `trainer.accelerator` it stands for."""
    gpu: str | None = None
    """What its driver calls it, as a regular expression of the whole name; `hardware=auto` finds it by that."""
    peak_tflops: float = 0.8
    """Dense bfloat16 matrix products, 10^12 FLOP/s. On CPUs a training measures it and later plans use that."""
    float32_tflops: float | None = None
    """The same of float32 products; null: taken for as many."""
    memory_gb: float | None = None
    """10^9 bytes; null asks the operating system."""
    bandwidth_gb_s: float = 40.0
    """Memory to processor, 10^9 bytes a second."""
    runtime_gb: float = 0.7
    """Taken by the process and its libraries before a model is loaded."""
    fragmentation: float = 0.5
    """Memory the allocator holds beyond what is in use, as a share of the activations."""
    efficiency: float = 0.4
    """Assumed share of the peak in training with large batches; what trainings of the store reached takes its place."""
    forward_efficiency: float = 0.5
    """The same where nothing is learnt: validation, references, evaluation."""
    half_speed_tokens: int = 0
    """Tokens of a micro-batch with which half of that is reached: what a batch costs whatever its size, in tokens."""

    def __post_init__(self) -> None:
        for name in ("peak_tflops", "float32_tflops", "memory_gb", "bandwidth_gb_s"):
            value = getattr(self, name)
            require(value is None or value > 0, f"hardware.{name}", value, "positive")
        for name in ("efficiency", "forward_efficiency"):
            require(0 < getattr(self, name) <= 1, f"hardware.{name}", getattr(self, name), "in (0, 1]")
        tokens = self.half_speed_tokens
        require(tokens >= 0, "hardware.half_speed_tokens", tokens, "zero or positive")


@dataclass
class TrainerConfig(Typed):
    """Devices, micro-batches and checkpoints: nothing of it changes a result."""

    accelerator: str = "cpu"
    """What a run computes on."""
    devices: int = 1
    """Devices of each node that a training uses, and GPUs of an evaluation."""
    num_nodes: int = 1
    """Nodes of a training; more than one in a SLURM job that has them."""
    micro_batch_size: int = 8
    """Rows forwarded at once on one device, at most; the update does not depend on it."""
    micro_batch_tokens: int = 16384
    """Their tokens, and padding where there is some, at most; a longer row goes alone."""
    checkpoint_every: int = 50
    """Optimizer steps between two checkpoints to resume from."""
    skip_nonfinite_steps: int = 0
    """Optimizer steps of a training that may be left out because their loss or gradient is NaN or infinite.

    One more ends the run. Not part of a key: a run either ends there or has these steps, named in stage.json.
    """
    log_every: int = 1
    """Optimizer steps between two lines of the curves."""
    validation_rows: int = 64
    """Held-out rows scored at the end of training, where the source has some."""
    gradient_checkpointing: bool | str = False
    """Recompute activations in the backward pass: less memory, about a third more work; `auto`: where a training would
    not fit its device without."""
    deterministic: bool = False
    """On GPUs only kernels that give the same bits each time, so that a training that was stopped ends as one that was
    not; slower, and an operation that has none is an error. CPUs always compute so."""
    progress_bar: bool = True
    """Show one while training."""

    @property
    def world_size(self) -> int:
        """Devices of a training, on all its nodes."""
        return self.devices * self.num_nodes

    def __post_init__(self) -> None:
        allowed = ("cpu", "gpu")
        require(self.accelerator in allowed, "trainer.accelerator", self.accelerator, f"one of {allowed}")
        recompute = self.gradient_checkpointing
        ok = recompute in (True, False, "auto")
        require(ok, "trainer.gradient_checkpointing", recompute, "true, false or auto")
        for name in (
            "devices",
            "num_nodes",
            "micro_batch_size",
            "micro_batch_tokens",
            "checkpoint_every",
            "log_every",
        ):
            require(getattr(self, name) > 0, f"trainer.{name}", getattr(self, name), "positive")
        for name in ("skip_nonfinite_steps", "validation_rows"):
            require(getattr(self, name) >= 0, f"trainer.{name}", getattr(self, name), "0 or more")


class StrategyName(str, Enum):
    """`ddp`: a copy of the parameters on each device; `fsdp`: one over all; `fsdp_hybrid`: one over `shard_size`."""

    single = "single"
    ddp = "ddp"
    fsdp = "fsdp"
    fsdp_hybrid = "fsdp_hybrid"


@dataclass
class StrategyConfig(Typed):
    """How a training is spread over several devices."""

    name: StrategyName = StrategyName.single
    """How several devices share a training; `single` is for one."""
    shard_size: int | None = None
    """Devices that share one copy of the parameters (fsdp_hybrid only); null is the devices of a node."""
    cpu_offload: bool = False
    """Keep sharded parameters and their optimizer in host memory between uses (fsdp and fsdp_hybrid)."""

    def __post_init__(self) -> None:
        sharded = self.name in (StrategyName.fsdp, StrategyName.fsdp_hybrid)
        if self.cpu_offload and not sharded:
            raise ValueError(
                f"strategy.cpu_offload=true needs strategy=fsdp or fsdp_hybrid, got {self.name.value}; "
                "only sharded parameters are offloaded"
            )
        if self.shard_size is not None and self.name is not StrategyName.fsdp_hybrid:
            raise ValueError(
                f"strategy.shard_size={self.shard_size} needs strategy=fsdp_hybrid, got {self.name.value}; "
                "fsdp shards over all devices"
            )


class WandbMode(str, Enum):
    """`auto` is online when a W&B key is found and offline otherwise."""

    auto = "auto"
    online = "online"
    offline = "offline"


@dataclass
class LoggerConfig(Typed):
    """Base of the loggers."""


@dataclass
class Wandb(LoggerConfig):
    """Curves and results in Weights & Biases as well as in the store."""

    project: str = "paft"
    """The project its runs are in."""
    entity: str | None = None
    """The user or team its project is of; null: your own."""
    mode: WandbMode = WandbMode.auto
    group: str = "paft"
    """All runs of one sweep share it."""
    tags: list[str] = field(default_factory=list)
    """Words that every run is found by."""


@dataclass
class Csv(LoggerConfig):
    """Training curves as metrics.csv beside the adapter, nothing else."""


@dataclass(frozen=True)
class Running:
    """What a stage is told beside its own config: how to run, and where to write.

    Callbacks are here as they are built here; those that may change a training are in its key by their source.
    """

    trainer: TrainerConfig
    strategy: StrategyConfig
    hardware: HardwareConfig
    logger: LoggerConfig
    callbacks: dict[str, Any]
    logs: str
    offline: bool

    @property
    def num_shards(self) -> int:
        """Devices that hold one copy of the parameters among them."""
        match self.strategy.name:
            case StrategyName.fsdp:
                return self.trainer.world_size
            case StrategyName.fsdp_hybrid:
                return self.strategy.shard_size or self.trainer.devices
        return 1
