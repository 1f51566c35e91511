"""How to run: none of this may change a result."""

from dataclasses import dataclass, field
from enum import Enum

from paft.config.checks import require


@dataclass
class TrainerConfig:
    accelerator: str = "cpu"
    devices: int = 1
    num_nodes: int = 1
    micro_batch_size: int = 8
    """Rows forwarded at once on one device; the update does not depend on it."""
    checkpoint_every: int = 50
    """Optimizer steps between two checkpoints to resume from."""
    log_every: int = 1
    validation_rows: int = 64
    """Held-out rows scored at the end of training, where the source has some."""
    gradient_checkpointing: bool = False
    progress_bar: bool = True

    def __post_init__(self) -> None:
        allowed = ("cpu", "gpu")
        require(self.accelerator in allowed, "trainer.accelerator", self.accelerator, f"one of {allowed}")
        for name in ("devices", "num_nodes", "micro_batch_size", "checkpoint_every", "log_every"):
            require(getattr(self, name) > 0, f"trainer.{name}", getattr(self, name), "positive")


class StrategyName(str, Enum):
    single = "single"
    ddp = "ddp"
    fsdp = "fsdp"
    fsdp_hybrid = "fsdp_hybrid"


@dataclass
class StrategyConfig:
    name: StrategyName = StrategyName.single
    cpu_offload: bool = False
    """Keep sharded parameters in host memory between uses (fsdp only)."""


class WandbMode(str, Enum):
    """`auto` is online when a W&B key is found and offline otherwise."""

    auto = "auto"
    online = "online"
    offline = "offline"


@dataclass
class LoggerConfig:
    """Base of the loggers."""


@dataclass
class Wandb(LoggerConfig):
    project: str = "paft"
    entity: str | None = None
    mode: WandbMode = WandbMode.auto
    group: str = "paft"
    """All runs of one sweep share it."""
    tags: list[str] = field(default_factory=list)


@dataclass
class Csv(LoggerConfig):
    """Training curves as metrics.csv beside the adapter, nothing else."""
