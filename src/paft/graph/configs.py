"""What each stage is told: its own slice of the config, and nothing else. It makes up the stage's key."""

from dataclasses import dataclass, field
from typing import Any

from paft.config import BranchConfig, DType, EvaluateConfig, MergeConfig, ModelConfig, Source, Template
from paft.config.checks import UNLESS_DEFAULT
from paft.config.judge import JudgeConfig
from paft.config.judged import Questions, Sampling


@dataclass
class DataStage:
    """Rows of one source as tokens in one chat template."""

    branch: str
    model: ModelConfig
    template: Template
    source: Source
    files: dict[str, str] = field(default_factory=dict)
    """sha256 of the local files the source reads."""
    generator: int | None = None
    """Version of the embedded data's generator, where the source is one."""


@dataclass
class FirstSteps:
    """The rows that the first optimizer steps of a training read."""

    max_steps: int
    global_batch_size: int
    seed: int


@dataclass
class ReferenceStage:
    """Log-probabilities of the training pairs under the base model, or under the base plus an `sft` input."""

    model: ModelConfig
    only: FirstSteps | None
    """Score these rows alone; null: all rows."""


@dataclass
class BranchStage:
    """One adapter trained on the base model, or on the base plus the adapter of an `sft` input."""

    model: ModelConfig
    branch: BranchConfig
    template: Template
    seed: int
    callbacks: list[dict[str, Any]] | None = field(default=None, metadata=UNLESS_DEFAULT)
    """The user's, which may change the training."""


@dataclass
class Apply(MergeConfig):
    """The plain sum of all deltas: the SFT, preference and sequential baselines."""


@dataclass
class MergeStage:
    """A full model from the base and the deltas of the inputs."""

    model: ModelConfig
    method: MergeConfig
    template: Template


@dataclass
class EvaluateStage:
    """Scores of the merged model, or of the base where there is no input."""

    model: ModelConfig
    template: Template
    evaluate: EvaluateConfig


@dataclass
class GenerateStage:
    """The answers of the merged model, or of the base where there is no input."""

    model: ModelConfig
    template: Template
    questions: Questions
    sampling: Sampling
    batch_size: int
    seed: int
    limit: int | None
    dtype: DType | None


@dataclass
class JudgeStage:
    """A judgement of each answer."""

    model: ModelConfig
    questions: Questions
    judge: JudgeConfig
