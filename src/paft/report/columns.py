"""Columns with numbers: what they are called, which way is better, how a value and its error are written."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from paft.report.numbers import DASH
from paft.report.row import Row, finite


@dataclass(frozen=True)
class Column:
    """How one score is written: in percent where every value is a share, else with three decimals."""

    name: str
    percent: bool
    higher_is_better: bool = True

    @property
    def title(self) -> str:
        return self.name.replace("_", " ") + ("" if self.higher_is_better else " ↓")

    def value(self, row: Row) -> float | None:
        measured = row.measured(self.name)
        return None if measured is None else self.scaled(measured.value)

    def stderr(self, row: Row) -> float | None:
        measured = row.measured(self.name)
        return None if measured is None else self.scaled(measured.stderr)

    def bar(self, row: Row) -> float:
        """Length of the error bar; NaN, which draws none, where nobody knows it."""
        stderr = self.stderr(row)
        return math.nan if stderr is None else stderr

    def error(self, row: Row) -> str:
        """`stderr` as it is written: `?` where a score has one that nobody knows, nothing beside no score."""
        value, stderr = self.value(row), self.stderr(row)
        if value is None or (stderr is None and self.name in MEASURES):
            return ""
        return "?" if stderr is None else self.text(stderr)

    def written(self, row: Row) -> str:
        """The value ± its error."""
        error = self.error(row)
        return self.text(self.value(row)) + (f" ± {error}" if error else "")

    @property
    def digits(self) -> str:
        """How its numbers are formatted, in the unit they are written in."""
        return ".2f" if self.percent else ".3f"

    def text(self, value: float | None) -> str:
        return DASH if value is None else f"{value:{self.digits}}"

    def best(self, rows: Sequence[Row]) -> float | None:
        """The best value of two rows or more; None where all are the same."""
        values = {v for r in rows if (v := self.value(r)) is not None}
        return None if len(values) < 2 else max(values) if self.higher_is_better else min(values)

    def scaled(self, value: float | None) -> float | None:
        """`value` in the unit it is written in; None where it is no number."""
        number = finite(value)
        return None if number is None else 100 * number if self.percent else number


MEASURES = (
    {
        name: Column(name, percent=True)
        for name in (
            *("sft_sparsity", "preference_sparsity", "sft_zeros", "preference_zeros"),
            *("sft_hoyer", "preference_hoyer", "sign_conflict", "cosine", "shared", "conflict_of_shared"),
            *("overlap", "rounded_back", "adapter_error"),
        )
    }
    | {
        name: Column(name, percent=False)
        for name in ("sft_rank", "preference_rank", "sft_norm", "preference_norm", "delta_l2")
    }
    | {"sft_nll": Column("sft_nll", percent=False, higher_is_better=False)}
)
"""Columns beside the scores that are measured once for each seed: shares of a delta's elements that are below 1e-5
and that are 0, its Hoyer sparsity and effective rank (means over layers), its Frobenius norm (over all elements), what
the merge found, and the SFT branch's loss on its validation rows in nats a token."""


def score_names(rows: Sequence[Row]) -> list[str]:
    """Task columns in table order, and the average last."""
    named = [c.removesuffix("_stderr") for r in rows for c in r if c.endswith("_stderr")]
    return [c for c in dict.fromkeys(named) if c not in (*MEASURES, "average")] + ["average"]


def score_columns(rows: Sequence[Row]) -> list[Column]:
    """The task columns that any of the rows has a score in, in table order, and the average."""
    lower = {name for r in rows for name in str(r.get("lower_is_better") or "").split()}
    columns = []
    for name in score_names(rows):
        values = [m.value for r in rows if (m := r.measured(name)) is not None]
        if values:
            shares = name not in lower and all(0 <= v <= 1 for v in values)
            columns.append(Column(name, shares, name not in lower))
    return columns
