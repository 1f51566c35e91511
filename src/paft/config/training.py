"""How a branch is trained."""

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, ClassVar, Literal, Self

from paft.config.checks import UNLESS_DEFAULT, Entry, Typed, incidental, require
from paft.config.penalty import L1Config, L1Of
from paft.config.soup import SFTSoupConfig, SoupConfig

ALL_LINEAR = "all-linear"
"""In place of names: every linear layer but the output head, as in peft."""
LINEAR_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Schedule(str, Enum):
    """`cosine` and `linear` fall to 0, `inverse_sqrt` as one over the root of the step, `constant` stays."""

    cosine = "cosine"
    linear = "linear"
    constant = "constant"
    inverse_sqrt = "inverse_sqrt"


class TakenKind(str, Enum):
    """What is taken in place of a training: a LoRA `adapter`, or a whole fine-tuned model, a `checkpoint`."""

    adapter = "adapter"
    checkpoint = "checkpoint"


class Tuning(str, Enum):
    """What is trained: `lora`, two factors of low rank a layer; `full`, every weight of the base."""

    lora = "lora"
    full = "full"


@dataclass
class LoraConfig(Typed):
    """Two factors a layer, of low rank: the only weights that are trained."""

    rank: int = 16
    """Columns of A^T and B: the largest rank of a layer's delta."""
    alpha: float = 16.0
    """The delta is alpha / rank * B A, with `rslora` alpha / sqrt(rank) * B A."""
    dropout: float = 0.0
    """Share of a layer's inputs that the adapter does not see, drawn by seed, step, row and layer."""
    target_modules: list[str] = field(default_factory=lambda: list(LINEAR_MODULES))
    """Last names of the linear layers that get an adapter, each one of the base's; or `all-linear`: every one but the
    output head, which the default means too on a base that has not all of its names."""
    rslora: bool = field(default=False, metadata=UNLESS_DEFAULT)
    """Scale by alpha / sqrt(rank) in place of alpha / rank (Kalajdzievski 2023)."""

    def __post_init__(self) -> None:
        require(self.rank > 0, "lora.rank", self.rank, "positive")
        require(self.alpha > 0, "lora.alpha", self.alpha, "positive")
        require(0 <= self.dropout < 1, "lora.dropout", self.dropout, "in [0, 1)")
        require(bool(self.target_modules), "lora.target_modules", self.target_modules, "a non-empty list")
        if ALL_LINEAR in self.target_modules:
            allowed = f"{ALL_LINEAR} alone, or names of layers"
            require(len(self.target_modules) == 1, "lora.target_modules", self.target_modules, allowed)


@dataclass
class BranchConfig(Typed):
    """What SFT and preference training share: what is trained, AdamW, one schedule, one global batch."""

    lora: LoraConfig = field(default_factory=LoraConfig)
    """The adapter that is trained."""
    tuning: Tuning = field(default=Tuning.lora, metadata=UNLESS_DEFAULT)
    """`lora` trains the adapter; `full` every weight of the base, embeddings, norms and head too, as a float32
    difference from it. Give `full` a learning rate of its own, such as 1e-5: those of LoRA are ten to a hundred times
    too high."""
    lr: float = 2e-4
    """Learning rate of AdamW at its highest."""
    schedule: Schedule = Schedule.cosine
    """How the learning rate falls after the warm-up."""
    warmup_ratio: float = 0.1
    """Share of all steps over which the learning rate rises to `lr`."""
    weight_decay: float = 0.0
    """Of AdamW, on both factors, or on the difference from the base, which it pulls to 0."""
    beta1: float = 0.9
    """AdamW's decay of the mean of gradients."""
    beta2: float = 0.999
    """AdamW's decay of the mean of their squares."""
    max_grad_norm: float = 1.0
    """Longer gradients are cut to this L2 norm, over all that is trained together."""
    global_batch_size: int = 16
    """Rows between two optimizer steps, over all devices."""
    epochs: int = 1
    """Times that every row is seen; the last rows that fill no global batch are left out of each."""
    max_steps: int | None = None
    """Optimizer steps; overrides `epochs`."""
    adapter: str | None = incidental(None)
    """A LoRA that is taken, not trained: a PEFT folder, or `user/repo@commit` of the Hugging Face hub. Its content is
    its identity."""
    checkpoint: str | None = incidental(None)
    """A fine-tuned model that is taken, not trained: its folder, or `user/repo@commit`. What it adds is its difference
    from the base."""
    soup: SoupConfig = field(default_factory=SoupConfig, metadata={"identity": False})
    """Several trainings, averaged; each has a key of its own."""

    def __post_init__(self) -> None:
        at = self.branch
        if self.adapter is not None and self.checkpoint is not None:
            raise ValueError(
                f"{at}.adapter={self.adapter} and {at}.checkpoint={self.checkpoint} are two answers to what the "
                "branch is; give one of them"
            )
        if self.taken and self.soup.stated:
            raise ValueError(
                f"{at}: {self.soup.stated} averages trainings, and {at}.{self.taken[0].value}={self.taken[1]} "
                "is taken as it is; leave one of them out"
            )
        for kind, place in (("adapter", self.adapter), ("checkpoint", self.checkpoint)):
            require(place != "", f"{at}.{kind}", place, "a folder, user/repo@commit, or null")
        require(self.lr > 0, f"{at}.lr", self.lr, "positive")
        require(0 <= self.warmup_ratio < 1, f"{at}.warmup_ratio", self.warmup_ratio, "in [0, 1)")
        require(self.weight_decay >= 0, f"{at}.weight_decay", self.weight_decay, "at least 0")
        require(0 <= self.beta1 < 1, f"{at}.beta1", self.beta1, "in [0, 1)")
        require(0 <= self.beta2 < 1, f"{at}.beta2", self.beta2, "in [0, 1)")
        require(self.max_grad_norm > 0, f"{at}.max_grad_norm", self.max_grad_norm, "positive")
        require(self.global_batch_size > 0, f"{at}.global_batch_size", self.global_batch_size, "positive")
        require(self.epochs > 0, f"{at}.epochs", self.epochs, "positive")
        require(
            self.max_steps is None or self.max_steps > 0,
            f"{at}.max_steps",
            self.max_steps,
            "positive or null",
        )

    @property
    def branch(self) -> str:
        return "preference"

    @property
    def taken(self) -> tuple[TakenKind, str] | None:
        """What stands in place of a training, and where it is; None for a branch that is trained."""
        if self.adapter is not None:
            return TakenKind.adapter, self.adapter
        return None if self.checkpoint is None else (TakenKind.checkpoint, self.checkpoint)

    @property
    def is_full(self) -> bool:
        """Whether every weight is trained here."""
        return self.tuning is Tuning.full and self.taken is None

    def in_effect(self) -> Self:
        """What the training depends on: where all weights are trained no adapter matters."""
        return replace(self, lora=LoraConfig()) if self.is_full else self

    def trainings(self, seed: int) -> list[tuple[Self, int]]:
        """What is trained, with its seed: the branch itself, or each training of its soup, whatever order they were
        given in."""
        alone: Any = {"soup": type(self.soup)()}
        return [(replace(self, **alone), own) for own in sorted(self.soup.seeds) or [seed]]


@dataclass
class SFTConfig(BranchConfig):
    """Supervised fine-tuning: the negative log-likelihood of answers, and the L1 penalty of its delta."""

    l1: L1Config = field(default_factory=L1Config)
    soup: SFTSoupConfig = field(default_factory=SFTSoupConfig, metadata={"identity": False})
    """Several trainings, averaged; each has a key of its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.is_full and self.l1.of is L1Of.factors:
            raise ValueError(
                "sft.l1.of=factors is a penalty of LoRA's factors, which sft.tuning=full has none of; "
                "set sft.l1.of=delta, or sft.tuning=lora"
            )

    @property
    def branch(self) -> str:
        return "sft"

    def in_effect(self) -> Self:
        return replace(super().in_effect(), l1=self.l1.in_effect())

    def trainings(self, seed: int) -> list[tuple[Self, int]]:
        weights = [*map(float, sorted(self.soup.lambdas))] or [self.l1.weight]
        each = super().trainings(seed)
        return [
            (replace(sft, l1=replace(sft.l1, weight=weight)), own) for weight in weights for sft, own in each
        ]


OBJECTIVES: dict[str, type["PreferenceConfig"]] = {}
"""Name on the command line -> the config of a preference objective, in the order of definition."""


@dataclass
class PreferenceConfig(Entry, BranchConfig):
    """Base of the preference objectives; `paft.objectives.objective.Objective` says how to write one."""

    entries: ClassVar[dict[str, Any]] = OBJECTIVES
    rows: ClassVar[Literal["pairs", "unpaired"]] = "pairs"
    """What it learns from: two answers a row, or one and a judgement of it."""

    @staticmethod
    def title_of(name: str) -> str:
        return name.upper()

    @property
    def needs_reference(self) -> bool:
        """Whether the loss asks what the base says of the pairs."""
        return False

    @property
    def has_reference_stage(self) -> bool:
        """Whether a stage of its own asks the base, once for all trainings on the same pairs."""
        return False

    @property
    def needs_kl(self) -> bool:
        """Whether the loss asks what the policy says of answers to other prompts, by a forward pass of its own."""
        return False

    @property
    def learns_prompt(self) -> bool:
        """Whether the likelihood of the prompt is part of the loss."""
        return False

    @property
    def weight_of_tail(self) -> float:
        """Weight of what the longer answer of a pair has beyond as many tokens as the shorter one has."""
        return 1.0
