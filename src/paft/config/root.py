"""The whole config of one run."""

from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

from omegaconf import MISSING

from paft.config.checks import Typed, require
from paft.config.data import DataConfig
from paft.config.evaluate import EvaluateConfig
from paft.config.judge import AnnotationsJudge, JudgeConfig
from paft.config.judged import JudgedConfig, MTBenchConfig
from paft.config.merge import MergeConfig
from paft.config.model import DType, ModelConfig
from paft.config.running import (
    HardwareConfig,
    LoggerConfig,
    Running,
    StrategyConfig,
    StrategyName,
    TrainerConfig,
)
from paft.config.training import PreferenceConfig, SFTConfig


class Paradigm(str, Enum):
    """Which branches are trained, and how: `parallel` merges both, `sequential` trains preference on top of SFT,
    `sft` and `preference` train one alone, `base` scores the base model."""

    parallel = "parallel"
    sequential = "sequential"
    sft = "sft"
    preference = "preference"
    base = "base"

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches that are trained."""
        match self:
            case Paradigm.base:
                return ()
            case Paradigm.sft | Paradigm.preference:
                return (self.value,)
        return ("sft", "preference")


@dataclass
class RunConfig(Typed):
    """The root. The root key `lambda` cannot be a Python name; it lives in `sft.l1.weight`."""

    model: ModelConfig = MISSING
    data: DataConfig = MISSING
    sft: SFTConfig = field(default_factory=SFTConfig)
    preference: PreferenceConfig = MISSING
    merge: MergeConfig = MISSING
    evaluate: EvaluateConfig = MISSING
    judge: JudgeConfig | None = None
    trainer: TrainerConfig = MISSING
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    """Comes with the trainer unless named."""
    strategy: StrategyConfig = MISSING
    logger: LoggerConfig = MISSING
    callbacks: dict[str, Any] = field(default_factory=dict)
    """Name -> Lightning callback as `_target_` and arguments; null leaves one of a group out."""
    paradigm: Paradigm = Paradigm.parallel
    seed: int = 42
    """Of the order of rows, the first LoRA factors, dropout and, by default, drop masks."""
    logs: str = "logs"
    """Folder of everything that is written."""
    store: str = "logs/stages"
    """Folder of the finished stages."""
    plan: bool = False
    """Print what would run, what is there and what it costs; run nothing."""
    no_training: bool = False
    """Refuse a cell whose branches are not in the store: a search merges what there is."""
    offline: bool = False
    """Never touch the network: hub files must be in the local cache already."""

    @property
    def running(self) -> Running:
        """The part that cannot change a result."""
        return Running(**{f.name: getattr(self, f.name) for f in fields(Running)})

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**32, "seed", self.seed, "at least 0 and below 2^32")
        self._check_tasks()
        loaded_as = self.evaluate.dtype or self.model.dtype
        if self.merge.dtype is DType.float32 and loaded_as is DType.bfloat16:
            raise ValueError(
                "merge.dtype=float32 would be rounded to bfloat16 when the model is loaded to be evaluated; "
                "add evaluate.dtype=float32"
            )
        self._check_devices()

    def _check_tasks(self) -> None:
        self._check_judge()
        for column, task in self.evaluate.tasks.items():
            task.refuse_upside_down(column)
            if task.rows:
                held_out = getattr(self.data, task.rows.value).held_out
                allowed = f"positive, as the items of evaluate.tasks.{column} are such rows"
                require(held_out > 0, f"data.{task.rows.value}.held_out", held_out, allowed)

    def _check_devices(self) -> None:
        if self.hardware.accelerator != self.trainer.accelerator:
            raise ValueError(
                f"trainer.accelerator={self.trainer.accelerator} but hardware={self.hardware.name} is a "
                f"{self.hardware.accelerator}; choose both, as trainer=gpu hardware=a100_80gb"
            )
        devices = self.trainer.world_size
        if devices > 1 and self.strategy.name is StrategyName.single:
            raise ValueError(
                f"trainer uses {devices} devices but strategy=single uses one; "
                "set strategy=ddp, fsdp or fsdp_hybrid, or trainer.devices=1"
            )
        if (size := self.strategy.shard_size) is not None:
            allowed = f"a divisor of the {devices} devices and at least 2 (strategy=ddp for whole copies)"
            require(size > 1 and devices % size == 0, "strategy.shard_size", size, allowed)
        if self.strategy.cpu_offload and devices == 1:
            raise ValueError("strategy.cpu_offload=true needs trainer.devices of at least 2, got 1 device")
        for at in self.paradigm.branches:
            rows = getattr(self, at).global_batch_size
            require(
                rows % devices == 0,
                f"{at}.global_batch_size",
                rows,
                f"a multiple of the {devices} devices, so that each gets the same number of rows",
            )

    def _check_judge(self) -> None:
        evaluate, judge = self.evaluate, self.judge
        if isinstance(evaluate, JudgedConfig) and judge is None:
            raise ValueError(
                f"evaluate={evaluate.name} needs a judge: add judge=openai, local or annotations"
            )
        if judge is not None and not isinstance(evaluate, JudgedConfig):
            raise ValueError(
                f"the judge has nothing to judge in evaluate={evaluate.name}; add evaluate=alpaca_eval or mt_bench"
            )
        if isinstance(judge, AnnotationsJudge) and isinstance(evaluate, MTBenchConfig):
            raise ValueError(
                "judge=annotations holds AlpacaEval's judgements; MT-Bench needs judge=openai or local"
            )
