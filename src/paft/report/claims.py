"""The paper's claims, as data: which cells are compared, and which way the difference should go.

`paft.report.findings` tests them.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from paft.report.names import merge_title


@dataclass(frozen=True)
class Pick:
    """One cell of the paper's Table 1, and its number that is meant."""

    paradigm: str
    l1: bool = False
    """SFT with the penalty, at the lambda tested; else with lambda = 0."""
    merge: str = ""
    column: str = "average"


Contrast = tuple[tuple[float, Pick], ...]
"""A weighted sum of cells, claimed to be above zero."""


@dataclass(frozen=True)
class Claim:
    name: str
    says: str
    """What is tested, in full."""
    source: str
    """Where the paper says it."""
    contrasts: dict[str, Contrast]
    """All of them must be above `above`."""
    above: float = 0.0
    of_sft_alone: bool = False
    """No preference objective is in it."""

    @property
    def needs_lambda(self) -> bool:
        return any(pick.l1 for contrast in self.contrasts.values() for _, pick in contrast)


PAPERS = ("slerp", "task_arithmetic", "ties", "dare", "linear")
"""The merge methods that the paper compares."""
SEQUENTIAL, SEQUENTIAL_DENSE = Pick("sequential", l1=True), Pick("sequential")
SFT_SPARSE, ALIGNED = Pick("sft", l1=True), Pick("preference")


def merged(method: str, *, l1: bool = True) -> Pick:
    return Pick("parallel", l1, method)


def mean(picks: Iterable[Pick], weight: float = 1.0) -> Contrast:
    every = tuple(picks)
    return tuple((weight / len(every), pick) for pick in every)


def gain(*methods: str, weight: float = 1.0) -> Contrast:
    """What the L1 penalty adds, mean over merge methods."""
    return (*mean(map(merged, methods), weight), *mean((merged(m, l1=False) for m in methods), -weight))


CLAIMS = (
    Claim(
        "Parallel beats sequential",
        "PAFT (SFT with L1), mean over the five merge methods, has a higher average than sequential training with L1.",
        "section 3.2",
        {"": (*mean(map(merged, PAPERS)), (-1.0, SEQUENTIAL))},
    ),
    Claim(
        "Parallel beats sequential with every merge",
        "PAFT has a higher average than sequential training with L1 with each of the five merge methods.",
        "appendix A: sequential training underperforms all the parallelly trained variants",
        {merge_title(m): ((1.0, merged(m)), (-1.0, SEQUENTIAL)) for m in PAPERS},
    ),
    Claim(
        "Parallel beats each branch alone",
        "PAFT, mean over the five merge methods, has a higher average than SFT with L1 alone and than preference "
        "training alone.",
        "section 3.2",
        {
            "over SFT alone": (*mean(map(merged, PAPERS)), (-1.0, SFT_SPARSE)),
            "over preference alone": (*mean(map(merged, PAPERS)), (-1.0, ALIGNED)),
        },
    ),
    Claim(
        "L1 helps merging",
        "The L1 penalty raises the average of the merged model, mean over the five merge methods.",
        "section 3.3",
        {"": gain(*PAPERS)},
    ),
    Claim(
        "L1 helps every merge",
        "The L1 penalty raises the average of the merged model with each of the five merge methods.",
        "section 3.3: across all considered merging techniques, consistently",
        {merge_title(m): gain(m) for m in PAPERS},
    ),
    Claim(
        "L1 helps TIES and DARE TIES most",
        "L1 raises the average more with TIES and DARE TIES (mean) than with SLERP, Task Arithmetic and Linear (mean).",
        "section 3.3",
        {"": (*gain("ties", "dare"), *gain("slerp", "task_arithmetic", "linear", weight=-1.0))},
    ),
    Claim(
        "L1 helps sequential training",
        "The L1 penalty in SFT raises the average after sequential training.",
        "section 3.3: marginal",
        {"": ((1.0, SEQUENTIAL), (-1.0, SEQUENTIAL_DENSE))},
    ),
    Claim(
        "TIES is the best merge",
        "PAFT with TIES has a higher average than with each of the four other methods.",
        "section 3.3: TIES generally performs better than other methods",
        {f"over {merge_title(m)}": ((1.0, merged("ties")), (-1.0, merged(m))) for m in PAPERS if m != "ties"},
    ),
    Claim(
        "SFT is dense, preference training sparse",
        "More elements of the preference delta than of the plain SFT delta are below 1e-5 (the paper's measure, which "
        "also counts an adapter that hardly moved).",
        "section 2.3, figure 2",
        {
            "": (
                (1.0, replace(ALIGNED, column="preference_sparsity")),
                (-1.0, Pick("sft", column="sft_sparsity")),
            )
        },
    ),
    Claim(
        "The same, whatever the deltas' scale",
        "The Hoyer sparsity of the preference delta is above that of the plain SFT delta.",
        "not in the paper: figure 2 by a measure without a threshold",
        {"": ((1.0, replace(ALIGNED, column="preference_hoyer")), (-1.0, Pick("sft", column="sft_hoyer")))},
    ),
    Claim(
        "L1 gives over 90 % sparsity",
        "More than 90 % of the elements of the SFT delta trained with L1 are below 1e-5.",
        "section 2.3, figure 2",
        {"": ((1.0, replace(SFT_SPARSE, column="sft_sparsity")),)},
        above=0.9,
        of_sft_alone=True,
    ),
)


@dataclass(frozen=True)
class Agreement:
    """A claim about claims: that every one of them comes out with one objective as with another."""

    name: str
    says: str
    source: str
    first: str
    other: str


AGREEMENT = Agreement(
    "ORPO shows the same",
    "Every claim above comes out with ORPO as it does with DPO.",
    "appendix A and section 5",
    "dpo",
    "orpo",
)
