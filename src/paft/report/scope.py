"""Which rows may be compared, and in what order they stand."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from paft.report.names import merge_place, objective_place
from paft.report.row import Row

SECTIONS = ("parallel", "sequential", "preference_first", "expo", "joint", "sft", "preference", "base")
"""Paradigms in the order of the paper's Table 1."""


class Scope(NamedTuple):
    """Rows of one scope answer the same questions with the same model, trained on the same rows."""

    base: str
    evaluate: str
    template: str
    limit: int | None
    sft_data: str
    preference_data: str

    @property
    def data(self) -> str:
        """What is trained on, both branches; empty for a base alone."""
        return " + ".join(filter(None, (self.sft_data, self.preference_data)))

    @property
    def items(self) -> str:
        """Which items are scored, where it is not all of them."""
        return f"first {self.limit} items only" if self.limit else ""

    def within(self, other: "Scope") -> bool:
        """True where `other` differs only by naming data that this scope does not use."""
        data = zip(self[4:], other[4:], strict=True)
        return self[:4] == other[:4] and all(mine in ("", theirs) for mine, theirs in data)


def scope_of(row: Row) -> Scope:
    return Scope(**{name: row[name] for name in Scope._fields})


def blocks(rows: Sequence[Row]) -> list[tuple[Scope, list[Row]]]:
    """The rows by widest scope, the one of most rows first, each block in the order of the paper's Table 1.

    A baseline that uses one data set, or none, is in every block it fits.
    """
    every = list(dict.fromkeys(map(scope_of, rows)))
    widest = [s for s in every if not any(s != other and s.within(other) for other in every)]
    blocks = [(s, sorted((r for r in rows if scope_of(r).within(s)), key=_rank)) for s in widest]
    return sorted(blocks, key=lambda block: (-len(block[1]), *map(str, block[0])))


def ranked(rows: Sequence[Row]) -> list[Row]:
    """The rows block by block, each once."""
    return list({r.evaluate_key: r for _, block in blocks(rows) for r in block}.values())


def _rank(row: Row) -> tuple[Any, ...]:
    weight = row.weight
    return (
        SECTIONS.index(row.paradigm),
        not weight,
        (objective_place(row.preference), row.preference) if row.preference else (-1, ""),
        -1.0 if weight is None else weight,
        (merge_place(row.merge), row.merge),
        [(name, *_sortable(row[name])) for name in sorted(row.options)],
        _sortable(row["seed"]),
        row.evaluate_key,
    )


def _sortable(value: Any) -> tuple[float, str]:
    """Numbers by size, text by the alphabet."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return (float(value), "") if number else (math.inf, str(value))


def title(scope: Scope, rows: Sequence[Row]) -> str:
    """What sets a table apart from others of a report: base, its storage in training, data, evaluation."""
    stored = {r.option("model.quantization") for r in rows if r.is_trained} - {None}
    quantization = stored.pop() if len(stored) == 1 and stored != {"none"} else ""
    return " · ".join(filter(None, (scope.base, quantization, scope.data, scope.evaluate, scope.items)))
