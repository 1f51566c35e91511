"""What of a merge is not in the files it was written to: said under a table where it is much."""

from collections.abc import Sequence

from paft.report.numbers import percent
from paft.report.row import Row

MUCH = 0.1
"""Share of the changed weights, or of the norm of the merged delta, from which on it is said."""


def not_stored(rows: Sequence[Row]) -> list[str]:
    """A sentence for what the stored type of the rows' models cannot hold, one for what the rank of adapters cannot."""
    said = []
    if (rounded := _largest(rows, "rounded_back")) >= MUCH:
        said.append(
            f"Of the weights that a merge changed, up to {percent(rounded, ' %')} are stored as the base's: its type "
            "is too coarse for the change. merge.dtype=float32 evaluate.dtype=float32 keeps them all."
        )
    if (lacking := _largest(rows, "adapter_error")) >= MUCH:
        said.append(
            f"Merged adapters lack up to {percent(lacking, ' %')} of their merge's delta (Frobenius norm): a larger "
            "merge.rank keeps more, merge.output=model all of it."
        )
    return said


def _largest(rows: Sequence[Row], measure: str) -> float:
    return max((found.value for row in rows if (found := row.measured(measure))), default=0.0)
