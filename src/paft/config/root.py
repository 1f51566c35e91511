"""The whole config of one run."""

from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import MISSING

from paft.config.checks import Typed, require
from paft.config.data import DataConfig
from paft.config.evaluate import Backend, EvaluateConfig
from paft.config.judge import AnnotationsJudge, JudgeConfig
from paft.config.judged import JudgedConfig, MTBenchConfig
from paft.config.merge import MergeConfig, MergeOutput
from paft.config.model import DType, ModelConfig
from paft.config.paradigms import ExpoConfig, JointConfig, Paradigm
from paft.config.running import (
    HardwareConfig,
    LoggerConfig,
    Running,
    StrategyConfig,
    StrategyName,
    TrainerConfig,
)
from paft.config.soup import SoupKind
from paft.config.training import PreferenceConfig, SFTConfig
from paft.config.tuning import refuse_full


@dataclass
class RunConfig(Typed):
    """The root. The root key `lambda` cannot be a Python name; it lives in `sft.l1.weight`."""

    model: ModelConfig = MISSING
    data: DataConfig = MISSING
    sft: SFTConfig = field(default_factory=SFTConfig)
    preference: PreferenceConfig = MISSING
    joint: JointConfig = field(default_factory=JointConfig)
    expo: ExpoConfig = field(default_factory=ExpoConfig)
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

    @property
    def evaluated_on(self) -> int:
        """Devices of an evaluation: the GPUs of one node where transformers scores, else one."""
        shared = self.trainer.accelerator == "gpu" and self.evaluate.backend is Backend.hf
        return self.trainer.devices if shared else 1

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**32, "seed", self.seed, "at least 0 and below 2^32")
        self._check_tasks()
        self._check_taken()
        self._check_soups()
        self._check_output()
        refuse_full(self)
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

    def _check_taken(self) -> None:
        """Nothing is taken that is not used; and sequential training makes the preference branch on top of SFT's."""
        for branch in (self.sft, self.preference):
            if branch.taken and branch.branch not in self.paradigm.branches:
                kind, place = branch.taken
                raise ValueError(
                    f"{branch.branch}.{kind.value}={place} is not used by paradigm={self.paradigm.value}; leave it "
                    f"out, or set paradigm=parallel or paradigm={branch.branch}"
                )
        if self.paradigm is not Paradigm.sequential:
            return
        for branch in (self.sft, self.preference):
            if branch.checkpoint is not None:
                raise ValueError(
                    f"{branch.branch}.checkpoint={branch.checkpoint} cannot be part of paradigm=sequential: to train "
                    "on top of a whole model give it as the base (model=local model.path=... paradigm=preference); "
                    "to merge it, paradigm=parallel"
                )
        if self.preference.adapter is not None and self.sft.adapter is None:
            raise ValueError(
                f"preference.adapter={self.preference.adapter} was not trained on top of an SFT that is still to be "
                "trained; paradigm=parallel merges it, or give sft.adapter too, and both are added to the base"
            )

    def _check_soups(self) -> None:
        """One adapter of joint training is no soup, and a greedy one needs rows to choose by."""
        for name in self.paradigm.branches:
            soup = getattr(self, name).soup
            if soup.stated and self.paradigm is Paradigm.joint:
                raise ValueError(
                    f"paradigm=joint trains one adapter, got {name}: {soup.stated}; leave it out, or set "
                    "paradigm=parallel"
                )
            if soup.kind is SoupKind.greedy and not getattr(self.data, name).has_validation:
                raise ValueError(
                    f"{name}.soup.kind=greedy goes by validation rows, and data.{name} has none: give it a "
                    f"validation_path (files) or a validation_split (hub), or leave {name}.soup.kind out"
                )

    def _check_output(self) -> None:
        """A merge with a whole model in it has no rank by itself: said here, not after the other branch's training."""
        wanting = self.merge.output is MergeOutput.adapter and self.merge.rank is None
        for branch in (self.sft, self.preference) if wanting else ():
            if branch.checkpoint is not None:
                raise ValueError(
                    f"merge.output=adapter needs merge.rank, as merge.rank=64: {branch.branch}.checkpoint="
                    f"{branch.checkpoint} is a whole model, which has no rank to add up"
                )

    def _check_devices(self) -> None:
        if self.hardware.accelerator != self.trainer.accelerator:
            raise ValueError(
                f"trainer.accelerator={self.trainer.accelerator} but hardware={self.hardware.name} is a "
                f"{self.hardware.accelerator}; choose both, as trainer=gpu hardware=a100_80gb"
            )
        if self.evaluate.backend is Backend.vllm and self.trainer.accelerator != "gpu":
            raise ValueError(
                f"evaluate.backend=vllm computes on a GPU, got trainer.accelerator={self.trainer.accelerator}; "
                "set trainer=gpu, or leave evaluate.backend out"
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
            if getattr(self, at).taken:
                continue
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
