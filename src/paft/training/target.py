"""Whether a delta became as sparse as `sft.l1.target_sparsity` asks; importing this module loads no torch."""

from collections.abc import Mapping
from typing import Any

from paft.config import Sparsity

MEASURES = {
    Sparsity.below_threshold: "share_below_1e-5",
    Sparsity.below_tenth_rms: "share_below_tenth_rms",
    Sparsity.zero: "share_zero",
}
"""What a target is a share of -> its measure in sparsity.json."""
TOLERANCE = 0.05
"""Share of the elements by which a delta may miss its target without a word."""


def reached(l1: Mapping[str, Any], sparsity: Mapping[str, Any]) -> float | None:
    """The share that a target is about, from an adapter's sparsity.json; None where there is no target."""
    if l1.get("target_sparsity") is None:
        return None
    measure = Sparsity(l1.get("target_measure") or Sparsity.below_threshold)
    share = sparsity.get("mean_over_layers", {}).get(MEASURES[measure])
    return None if share is None else float(share)


def missed(target: float, share: float) -> str | None:
    """What a reader must know of a delta that is not as sparse as wanted; None where it is."""
    if abs(share - target) <= TOLERANCE:
        return None
    said = f"sft.l1.target_sparsity={target:g} was not reached: {share:.1%} of the delta count as zero"
    if share > target:
        return f"{said}; start from a smaller lambda, or give lambda more steps to fall (sft.epochs, sft.max_steps)"
    return (
        f"{said}; start from a larger lambda, train for more steps (sft.epochs, sft.max_steps) or raise "
        "sft.l1.target_gain"
    )
