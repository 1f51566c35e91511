"""How two deltas become one."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

from paft.config.checks import UNLESS_DEFAULT, Entry, incidental, require
from paft.config.model import DType


class Space(str, Enum):
    """What is merged: the deltas' elements; `full`: those of whole weights (SLERP as in mergekit); `core`: the small
    matrices U^T delta V, in the singular vectors U of all B and V of all A together (core space, 2509.17786); `svd`:
    the V_i of the deltas side by side, [delta_1 | delta_2] = U [V_1 | V_2] (KnOTS, 2410.19735). `core` needs LoRA
    deltas, but for methods of no other space, which merge any others as whole weights."""

    delta = "delta"
    full = "full"
    core = "core"
    svd = "svd"


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


class Combine(str, Enum):
    """Of the values that agree: their mean, by `normalize`; their sum, another way to write `normalize=none`; or the
    largest (the TIES reference's dis-max, EMR's unified vector)."""

    mean = "mean"
    sum = "sum"
    max = "max"


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
    branches'. `branches`: each branch's delta is multiplied by one factor to have it, before it is merged.
    `merged`: the merged delta is multiplied by one factor to have it, whatever weights and scale. `preference`: the SFT
    delta is multiplied by one factor to have the preference delta's norm, which stays as it is; so SFT deltas of
    several trainings have one size, and nothing else of the merge changes with theirs. `own`: none of it.
    """

    own = "own"
    branches = "branches"
    merged = "merged"
    preference = "preference"


class PruneBy(str, Enum):
    """Which elements of a branch's delta are made zero: those of smallest `magnitude` over all its tensors together
    (Han et al. 2015, arXiv:1506.02626), or each at `random` with one probability (DARE without its factor,
    arXiv:2311.03099)."""

    magnitude = "magnitude"
    random = "random"


class Statistic(str, Enum):
    """What a merge may ask of the branches' rows: `fisher`: squared gradients of each weight; `gram`: second moments of
    each layer's inputs; `coefficients`: the best weights of both branches for each layer."""

    fisher = "fisher"
    gram = "gram"
    coefficients = "coefficients"


class MergeOutput(str, Enum):
    """`model`: the base with merged weights; `adapter`: a LoRA adapter of the merged delta, for peft and vLLM.

    A linear merge of LoRA deltas is exact as an adapter, at the sum of their ranks; of any other the nearest delta of
    `rank` is taken (a truncated SVD of each tensor), and how far off it is stands beside the result.
    """

    model = "model"
    adapter = "adapter"


METHODS: dict[str, type["MergeConfig"]] = {}
"""Name on the command line -> the config of a merge method, in the order of the paper's Table 1, then of definition."""


@dataclass
class MergeConfig(Entry):
    """What every method shares. Weights are given in the order SFT, preference.

    `paft.merge.method.Method` says how to write one.
    """

    entries: ClassVar[dict[str, Any]] = METHODS
    spaces: ClassVar[tuple[Space, ...]] = (Space.delta, Space.core, Space.svd)
    """Those that the method can merge in."""
    needs: ClassVar[Statistic | None] = None
    """What it asks of each branch's training rows."""
    decompositions: ClassVar[int] = 0
    """How many singular value decompositions, of the size of a tensor, it takes where a delta is no LoRA."""

    space: Space = field(default=Space.delta, metadata=UNLESS_DEFAULT)
    norm: Norm = field(default=Norm.own, metadata=UNLESS_DEFAULT)
    prune_sft: float = field(default=0.0, metadata=UNLESS_DEFAULT)
    """Share of the SFT delta's elements that is made zero before all else, `norm` too; the method gets what is left."""
    prune_preference: float = field(default=0.0, metadata=UNLESS_DEFAULT)
    """The same of the preference delta."""
    prune_by: PruneBy = field(default=PruneBy.magnitude, metadata=UNLESS_DEFAULT)
    prune_seed: int | None = field(default=None, metadata=UNLESS_DEFAULT)
    """Of what is pruned at random, together with branch and tensor name; null is 42."""
    dtype: DType | None = field(default=None, metadata=UNLESS_DEFAULT)
    """Storage type of the weights that change; null keeps the base's. For float32 also `evaluate.dtype=float32`."""
    output: MergeOutput = field(default=MergeOutput.model, metadata=UNLESS_DEFAULT)
    rank: int | None = field(default=None, metadata=UNLESS_DEFAULT)
    """Of a merged adapter; null is the sum of the ranks it is merged of."""
    keep: bool = incidental(True)
    """False deletes a merged model once it is evaluated."""
    overlap: bool = incidental(False)
    """Also measure how far both deltas read the same directions of each layer's input (`overlap` in merge.json)."""
    prove: bool = incidental(True)
    """Read what was written back with transformers, and compare its logits with the base plus the merged delta."""

    def __post_init__(self) -> None:
        if self.space not in self.spaces:
            allowed = " or ".join(space.value for space in self.spaces)
            raise ValueError(f"merge.space must be {allowed} for merge={self.name}, got {self.space.value!r}")
        self._check_pruning()
        require(self.rank is None or self.rank > 0, "merge.rank", self.rank, "positive or null")
        if self.output is MergeOutput.model and self.rank is not None:
            raise ValueError(
                f"merge.rank={self.rank} is the rank of a merged adapter; add merge.output=adapter, or leave it out"
            )
        if self.output is MergeOutput.adapter and self.dtype is not None:
            raise ValueError(
                f"merge.dtype={self.dtype.value} is of merged models, and an adapter is float32; leave it out"
            )

    @property
    def pruned(self) -> dict[str, float]:
        """Branch -> share of its delta that is made zero, of those that lose any."""
        shares = {"sft": self.prune_sft, "preference": self.prune_preference}
        return {branch: share for branch, share in shares.items() if share}

    def _check_pruning(self) -> None:
        for branch, share in self.pruned.items():
            require(0 < share < 1, f"merge.prune_{branch}", share, "at least 0 and below 1")
        if not self.pruned:
            self.prune_by = PruneBy.magnitude
        drawn = self.prune_by is PruneBy.random
        self.prune_seed = (42 if self.prune_seed is None else self.prune_seed) if drawn else None
        if not self.pruned:
            return
        if self.space is Space.core and Space.delta in self.spaces:
            raise ValueError(
                "merge.space=core is made of the factors of LoRA deltas, and a pruned delta has none; set "
                "merge.space=delta or merge.space=svd"
            )
        if self.needs is Statistic.coefficients:
            raise ValueError(
                f"merge={self.name} learns its coefficients with whole deltas, and would apply them to pruned ones; "
                "leave merge.prune_sft and merge.prune_preference out"
            )
        if self.output is MergeOutput.adapter and self.rank is None:
            raise ValueError("merge.output=adapter needs merge.rank of a pruned delta, as merge.rank=64")
