"""How two deltas become one."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

from paft.config.checks import UNLESS_DEFAULT, Typed, incidental, require
from paft.config.model import DType


class SlerpSpace(str, Enum):
    """`delta` interpolates the deltas; `full` interpolates whole weights, as mergekit does."""

    delta = "delta"
    full = "full"


class Election(str, Enum):
    """Sign of a position by `mass` (sign of the sum) or by `count` (sign of the sum of signs)."""

    mass = "mass"
    count = "count"  # type: ignore[assignment]  # str has a method of that name


class ElectOn(str, Enum):
    """Elect on weighted deltas (mergekit) or before weighting (TIES reference, peft)."""

    weighted = "weighted"
    unweighted = "unweighted"


class Normalize(str, Enum):
    """Divide by the agreeing weights (mergekit), by the agreeing count (peft), or not at all."""

    weights = "weights"
    count = "count"  # type: ignore[assignment]  # str has a method of that name
    none = "none"


class Scope(str, Enum):
    """Keep the largest share of each tensor (mergekit), or of all tensors together (TIES reference)."""

    tensor = "tensor"
    locals()["global"] = "global"  # OmegaConf goes by the member's name, and this is a word of Python's
    all = "global"


class Rescale(str, Enum):
    """After dropping: restore the L1 norm of this draw (mergekit), divide by density (DARE paper), or nothing."""

    l1 = "l1"
    inverse_density = "inverse_density"
    none = "none"


class Norm(str, Enum):
    """Which deltas are brought to one norm, so that methods are compared and not sizes.

    The norm is Frobenius's over all tensors of an adapter together, and the common one the geometric mean of the two
    branches'. `branches`: each branch's delta is multiplied by one factor to have it, before anything else is done.
    `merged`: the merged delta is multiplied by one factor to have it, whatever weights and scale. `own`: neither.
    """

    own = "own"
    branches = "branches"
    merged = "merged"


METHODS: dict[str, type["MergeConfig"]] = {}
"""Name on the command line -> the config of a merge method, in the order of the paper's Table 1, then of definition."""


@dataclass
class MergeConfig(Typed):
    """What every method shares. Weights are given in the order SFT, preference.

    A class that is given a `name` is a method of that name everywhere: `merge=<name>`, tables, pictures.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    """As tables and pictures write it."""
    source: ClassVar[str] = ""
    """The paper or code that defines it."""

    def __init_subclass__(cls, *, name: str = "", title: str = "", source: str = "", **options: Any) -> None:
        super().__init_subclass__(**options)
        if name:
            cls.name, cls.title, cls.source = name, title or name.replace("_", " ").title(), source
            METHODS[name] = cls

    norm: Norm = field(default=Norm.own, metadata=UNLESS_DEFAULT)
    dtype: DType | None = field(default=None, metadata=UNLESS_DEFAULT)
    """Storage type of the weights that change; null keeps the base's. For float32 also `evaluate.dtype=float32`."""
    keep: bool = incidental(True)
    """False deletes a merged model once it is evaluated."""


@dataclass
class WeightedMerge(MergeConfig):
    weights: list[float] = field(default_factory=lambda: [1.0, 1.0])
    scale: float = 1.0
    """Factor on the merged delta (lambda in the task-arithmetic and TIES papers)."""
    sft_weight: float | None = incidental(None)
    """Another way to write the first of `weights`, for a search over numbers; null leaves it."""
    preference_weight: float | None = incidental(None)
    """The same for the second."""

    def __post_init__(self) -> None:
        require(len(self.weights) == 2, "merge.weights", self.weights, "two numbers: [sft, preference]")
        own = (self.sft_weight, self.preference_weight)
        self.weights = [w if given is None else given for w, given in zip(self.weights, own, strict=True)]


@dataclass
class SparseMerge(WeightedMerge):
    density: float = 0.5
    """Share of each delta that is kept; 1 keeps everything."""
    sft_density: float | None = None
    """Density of the SFT delta alone; null uses `density`."""
    preference_density: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("density", "sft_density", "preference_density"):
            value = getattr(self, name)
            require(value is None or 0 < value <= 1, f"merge.{name}", value, "in (0, 1]")

    @property
    def densities(self) -> list[float]:
        own = (self.sft_density, self.preference_density)
        return [self.density if value is None else value for value in own]


@dataclass
class Slerp(MergeConfig, name="slerp", title="SLERP", source="Shoemake 1985, doi:10.1145/325165.325242"):
    """Spherical interpolation from SFT (t = 0) to preference (t = 1)."""

    t: float = 0.5
    space: SlerpSpace = SlerpSpace.delta

    def __post_init__(self) -> None:
        require(0 <= self.t <= 1, "merge.t", self.t, "in [0, 1]")


@dataclass
class TaskArithmetic(
    WeightedMerge,
    name="task_arithmetic",
    title="Task Arithmetic",
    source="Ilharco et al. 2023, arXiv:2212.04089",
):
    """Weighted sum of the deltas times `scale`."""


@dataclass
class Ties(SparseMerge, name="ties", title="TIES", source="Yadav et al. 2023, arXiv:2306.01708"):
    """Trim by magnitude, elect signs, average what agrees (Yadav et al. 2023)."""

    election: Election = Election.mass
    elect_on: ElectOn = ElectOn.weighted
    normalize: Normalize = Normalize.weights
    scope: Scope = Scope.tensor


@dataclass
class DareMerge(SparseMerge):
    """What the two DARE methods share: drop at random, then rescale (Yu et al. 2023)."""

    rescale: Rescale = Rescale.l1
    normalize: Normalize = Normalize.none
    seed: int = 42
    """Of the drop masks, together with branch and tensor name."""


@dataclass
class DareTies(DareMerge, name="dare", title="DARE TIES", source="Yu et al. 2024, arXiv:2311.03099"):
    """Drop at random, rescale, elect signs, add what agrees: the paper's DARE TIES."""

    election: Election = Election.mass
    elect_on: ElectOn = ElectOn.weighted


@dataclass
class DareLinear(
    DareMerge, name="dare_linear", title="DARE Linear", source="Yu et al. 2024, arXiv:2311.03099"
):
    """Drop at random, rescale, add."""


@dataclass
class Linear(WeightedMerge, name="linear", title="Linear", source="Wortsman et al. 2022, arXiv:2203.05482"):
    """Weighted average of the deltas."""

    normalize: bool = True
    """Divide by the sum of the weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not self.normalize or sum(self.weights) != 0, "merge.weights", self.weights, "not summing to 0"
        )
