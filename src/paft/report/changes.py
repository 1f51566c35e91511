"""Which items two evaluations did not answer alike: the texts, both answers, and by how much each was right."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from paft.evaluate.answers import read_answers
from paft.report.backends import mixed
from paft.report.columns import Column, score_columns
from paft.report.html import html
from paft.report.items import Scores
from paft.report.numbers import DASH, signed
from paft.report.row import Row
from paft.report.selection import select
from paft.report.table import require_rows
from paft.report.tables import Head, Table, plain_table

PAGE = "items.html"
SAME = 1e-12
Said = dict[tuple[str, str], dict[str, Any]]


@dataclass(frozen=True)
class Change:
    """One item; a margin above 0 is that of a right answer. Texts are empty where the evaluation kept none."""

    item: str
    values: tuple[float, float]
    """Of A and of B, as the column counts them."""
    gain: float
    """B over A, above 0 where B is better."""
    prompt: str
    expected: str
    answers: tuple[str, str]
    margins: tuple[float | None, float | None]

    @property
    def better(self) -> str:
        return "B" if self.gain > 0 else "A"

    @property
    def sides(self) -> list[tuple[str, str, str]]:
        """(A or B, its answer, its value and margin) of both."""
        shown = zip("AB", self.answers, self.values, self.margins, strict=True)
        return [(side, answer, _worth(value, margin)) for side, answer, value, margin in shown]


@dataclass(frozen=True)
class Changed:
    """The items of one column that changed, those that changed most first."""

    column: Column
    num_items: int
    changes: list[Change]
    cautions: tuple[str, ...] = ()
    """What a reader must know of the two evaluations."""

    def num_better(self, side: str) -> int:
        return sum(change.better == side for change in self.changes)


def changed_items(store: Path, left: str, right: str, column: str | None = None) -> list[Changed]:
    """What changed from A to B, by column, in table order.

    Raises `ValueError` for a selector of no or several evaluations, for two that have no items in common, and for a
    `column` that is not among theirs.
    """
    table = require_rows(store)
    one, other = (_only(table, text) for text in (left, right))
    scores = Scores(store, [one, other])
    shared = [c for c in score_columns([one, other]) if _asked_alike(scores, one, other, c.name)]
    if not shared:
        raise ValueError(
            f"{left} and {right} answered no items in common that their folders keep; evaluate both with the same "
            "evaluate options"
        )
    if column is not None and column not in {c.name for c in shared}:
        raise ValueError(f"--column={column} is none of {', '.join(c.name for c in shared)}")
    folders = (store / "evaluate" / row.evaluate_key for row in (one, other))
    said: tuple[Said, Said] = tuple(map(read_answers, folders))  # type: ignore[assignment]
    keys = (one.evaluate_key, other.evaluate_key)
    cautions = tuple(mixed([one, other]))
    return [
        replace(_changed(c, scores, keys, said), cautions=cautions)
        for c in shared
        if column in (None, c.name)
    ]


def _only(table: list[Row], text: str) -> Row:
    rows = select(table, text).rows
    if len(rows) > 1:
        raise ValueError(f"{text} selects {len(rows)} evaluations; name one, by its seed or its evaluate key")
    return rows[0]


def _asked_alike(scores: Scores, one: Row, other: Row, column: str) -> bool:
    ids = [scores.items[row.evaluate_key].get(column) for row in (one, other)]
    return None not in ids and scores.paired(one, other, column)


def _changed(column: Column, scores: Scores, keys: tuple[str, str], said: tuple[Said, Said]) -> Changed:
    a, b = (scores.items[key][column.name] for key in keys)
    values = np.stack([items.numerators / items.denominators for items in (a, b)])
    gains = (values[1] - values[0]) * (1 if column.higher_is_better else -1)
    order = sorted(np.flatnonzero(np.abs(gains) > SAME), key=lambda at: (-abs(gains[at]), at))
    changes = []
    for at in order:
        mine, theirs = (side.get((column.name, a.ids[at]), {}) for side in said)
        texts = mine or theirs
        changes.append(
            Change(
                item=a.ids[at],
                values=(float(values[0, at]), float(values[1, at])),
                gain=float(gains[at]),
                prompt=texts.get("prompt", ""),
                expected=texts.get("expected", ""),
                answers=(mine.get("answer", ""), theirs.get("answer", "")),
                margins=(mine.get("margin"), theirs.get("margin")),
            )
        )
    return Changed(column, len(a.ids), changes)


def _worth(value: float, margin: float | None) -> str:
    return f"{value:.4g}" + ("" if margin is None else f", margin {signed(margin, '.3f')}")


def summary(changed: Sequence[Changed], left: str, right: str) -> Table:
    """How many items of each column changed, and for the better of which side."""
    lines = [
        [
            c.column.title,
            str(c.num_items),
            str(c.num_items - len(c.changes)),
            *(str(c.num_better(s)) for s in "AB"),
        ]
        for c in changed
    ]
    head = [Head("column", numeric=False), *map(Head, ("items", "alike", "A better", "B better"))]
    return plain_table(head, lines, title=f"A = {left} · B = {right}")


def page(changed: Sequence[Changed], left: str, right: str) -> str:
    """The HTML document of all that changed; every text is escaped."""
    cautions = changed[0].cautions if changed else ()
    return html(PAGE, {"changed": changed, "left": left, "right": right, "cautions": cautions, "dash": DASH})
