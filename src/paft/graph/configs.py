"""What each stage is told: its own slice of the config, and nothing else. It makes up the stage's key."""

import os
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from paft.config import (
    BranchConfig,
    DType,
    EvaluateConfig,
    MergeConfig,
    ModelConfig,
    PreferenceConfig,
    Source,
    Statistic,
    TakenKind,
    Template,
)
from paft.config.checks import UNLESS_DEFAULT, incidental
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
    unpaired: bool = field(default=False, metadata=UNLESS_DEFAULT)
    """Whether rows are single answers with a judgement, into which pairs are split."""


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
    shorter: bool = field(default=False, metadata=UNLESS_DEFAULT)
    """Also sum either answer up to the length of the shorter one, for an objective with a weight of the tail."""


@dataclass
class JointRows:
    """SFT rows that a preference training reads beside its pairs, in as many steps as they take by themselves."""

    weight: float
    """Of the SFT loss beside the preference loss."""
    global_batch_size: int
    epochs: int
    max_steps: int | None


@dataclass
class BranchStage:
    """One adapter trained on the base model, or on the base plus the adapter of an `sft` input."""

    model: ModelConfig
    branch: BranchConfig
    template: Template
    seed: int
    callbacks: list[dict[str, Any]] | None = field(default=None, metadata=UNLESS_DEFAULT)
    """The user's, which may change the training."""
    joint: JointRows | None = field(default=None, metadata=UNLESS_DEFAULT)
    """In joint training."""


@dataclass
class TakenStage:
    """A branch that was trained elsewhere. Its content is its identity, not where it lies."""

    model: ModelConfig
    """The base that it is a change of."""
    kind: TakenKind
    sha256: str = ""
    """Of its files; empty of one on the hub, which its commit tells."""
    hub: str = ""
    """`user/repo@commit`; empty of a folder on this disk."""
    path: str = incidental("")
    """The folder; empty of one on the hub."""

    @property
    def title(self) -> str:
        """What people call it: the repository, or the last part of the path."""
        return self.hub.partition("@")[0] or PurePath(os.path.abspath(self.path)).name


@dataclass
class SoupStage:
    """The mean of the deltas of several trainings of one branch, which are its inputs."""

    model: ModelConfig


@dataclass
class GreedySoupStage(SoupStage):
    """The mean of those that are chosen by their loss on the first validation rows of the input `data`, on the base, or
    on the base plus the adapter of an input that they were trained on top of."""

    num_rows: int


@dataclass
class StatisticsStage:
    """What a branch's own training rows say of the tensors that it changes, for merges that ask."""

    model: ModelConfig
    statistic: Statistic
    branch: str
    num_rows: int
    seed: int


@dataclass
class CoefficientsStage:
    """How much of each branch's delta every tensor takes, learnt on a few rows of both."""

    model: ModelConfig
    preference: PreferenceConfig
    """Its loss is minimised beside the SFT loss."""
    weights: list[float]
    """What the coefficients start from."""
    num_rows: int
    batch_size: int
    steps: int
    lr: float
    preference_loss_weight: float
    seed: int


@dataclass
class Apply(MergeConfig):
    """The plain sum of all deltas: the SFT, preference, joint and sequential baselines."""

    expo: float = field(default=0.0, metadata=UNLESS_DEFAULT)
    """Added to the weight 1 of the preference delta."""


@dataclass
class MergeStage:
    """A full model from the base and the deltas of the inputs."""

    model: ModelConfig
    method: MergeConfig
    template: Template
    checkpoints: dict[str, str] = field(default_factory=dict, metadata={"identity": False})
    """Branch -> where the whole model lies that it was taken as; its content is in the branch's own key."""


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
    generation_batch_size: int | None = incidental(None)
    """Where nothing is drawn; None: `batch_size`."""

    @property
    def at_once(self) -> int:
        """Texts of a batch: what is drawn depends on its neighbours, which then are those of `batch_size`."""
        drawn = self.sampling.temperature > 0 or any(
            degrees > 0 for degrees in getattr(self.questions, "temperatures", {}).values()
        )
        return self.batch_size if drawn else self.generation_batch_size or self.batch_size


@dataclass
class JudgeStage:
    """A judgement of each answer."""

    model: ModelConfig
    questions: Questions
    judge: JudgeConfig
