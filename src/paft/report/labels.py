"""How rows are grouped, ordered, named and written: shared by the page, the figures and the terminal."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

Row = dict[str, Any]
"""One evaluation, flat; the columns are those of results.csv."""

TITLES = {
    "slerp": "SLERP",
    "task_arithmetic": "Task Arithmetic",
    "ties": "TIES",
    "dare": "DARE TIES",
    "dare_linear": "DARE Linear",
    "linear": "Linear",
}
"""Merge methods in the order of the paper's Table 1."""
SECTIONS = ("parallel", "sequential", "sft", "preference", "base")
SETTINGS = (
    "sft_lr",
    "preference_lr",
    "preference_beta",
    "l1_of",
    "l1_method",
    "l1_target",
    "seed",
)
"""Beside the merge options, what may tell two rows of one method apart."""


# --- what may be compared ----------------------------------------------------------------------------


class Scope(NamedTuple):
    """Rows of one scope answer the same questions with the same model, trained on the same rows."""

    base: str
    evaluate: str
    template: str
    limit: int | None
    sft_data: str
    preference_data: str

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
    found = [(s, sorted((r for r in rows if scope_of(r).within(s)), key=_rank)) for s in widest]
    return sorted(found, key=lambda block: (-len(block[1]), *map(str, block[0])))


def ranked(rows: Sequence[Row]) -> list[Row]:
    """The rows block by block, each once."""
    return list({r["evaluate_key"]: r for _, block in blocks(rows) for r in block}.values())


def _rank(row: Row) -> tuple[Any, ...]:
    weight, merges = row["lambda"], list(TITLES)
    return (
        SECTIONS.index(row["paradigm"]),
        not weight,
        row["preference"],
        -1.0 if weight is None else weight,
        merges.index(row["merge"]) if row["merge"] in merges else len(merges),
        [str(value) for column, value in row.items() if column.startswith("merge.")],
        row["evaluate_key"],
    )


# --- names -------------------------------------------------------------------------------------------


def section(row: Row) -> str:
    """The heading of Table 1 that the row stands under."""
    aligned = str(row["preference"]).upper()
    if row["paradigm"] == "parallel":
        return f"PAFT (SFT_sparse+{aligned})" if row["lambda"] else f"Parallel SFT+{aligned}"
    return "Sequential" if row["paradigm"] == "sequential" else "Individual"


def method(row: Row) -> str:
    """The row's name in Table 1."""
    sft, aligned = "SFT_sparse" if row["lambda"] else "SFT", str(row["preference"]).upper()
    match row["paradigm"]:
        case "parallel":
            return TITLES.get(str(row["merge"]), str(row["merge"]))
        case "sequential":
            return f"{sft}+{aligned}"
        case "sft":
            return f"{sft}-alone"
        case "preference":
            return f"{aligned}-alone"
    return str(row["base"])


def labels(rows: Sequence[Row]) -> list[str]:
    """`method` of each row, with the settings in which rows of that method and objective differ.

    Rows of one section and lambda that are still alike get the start of their key.
    """
    peers: dict[tuple[str, Any], list[Row]] = {}
    for row in rows:
        peers.setdefault((method(row), row["preference"]), []).append(row)
    differing = {name: _differing(group) for name, group in peers.items()}
    several = {name for name, count in Counter(name for name, _ in peers).items() if count > 1}
    texts = []
    for row in rows:
        columns = differing[method(row), row["preference"]]
        objective = ["preference"] if method(row) in several else []
        settings = filter(None, (_setting(row, c) for c in (*objective, *columns)))
        texts.append(" ".join([method(row), *settings]))
    places = [(section(r), r["lambda"], text) for r, text in zip(rows, texts, strict=True)]
    count = Counter(places)
    return [
        text if count[place] == 1 else f"{text} {r['evaluate_key'][:6]}"
        for r, text, place in zip(rows, texts, places, strict=True)
    ]


def _differing(rows: list[Row]) -> list[str]:
    options = dict.fromkeys(c for r in rows for c in r if c.startswith("merge."))
    if all(r.get("merge.seed") == r.get("seed") for r in rows):
        options.pop("merge.seed", None)
    apart = [
        s for s in SETTINGS if s != "seed" or not all("seeds" in r for r in rows)
    ]  # a cell has many seeds
    return [c for c in (*options, *apart) if len({str(r.get(c)) for r in rows}) > 1]


def _setting(row: Row, column: str) -> str:
    value = row.get(column)
    if value in (None, ""):
        return ""
    if column == "preference":
        return str(value).upper()
    return f"{column.removeprefix('merge.')}={short(value) if isinstance(value, float) else value}"


def short(value: float | None) -> str:
    """A number as one writes it on the command line: 0, 0.5, 1e-4; a dash for None."""
    if value is None:
        return "–"
    if not 0 < abs(value) < 1e-2:
        return f"{value:g}"
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


# --- scores ------------------------------------------------------------------------------------------


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
        return self.scaled(row.get(self.name))

    def stderr(self, row: Row) -> float | None:
        return self.scaled(row.get(f"{self.name}_stderr"))

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

    def text(self, value: float | None) -> str:
        return "–" if value is None else f"{value:.{2 if self.percent else 3}f}"

    def best(self, rows: Sequence[Row]) -> float | None:
        """The best value of two rows or more; None where all are the same."""
        values = {v for r in rows if (v := self.value(r)) is not None}
        return None if len(values) < 2 else max(values) if self.higher_is_better else min(values)

    def scaled(self, value: float | None) -> float | None:
        """`value` in the unit it is written in; None where it is no number."""
        if value is None or not math.isfinite(value):
            return None
        return 100 * value if self.percent else value


MEASURES = (
    {
        name: Column(name, percent=True)
        for name in (
            *("sft_sparsity", "preference_sparsity", "sft_zeros", "preference_zeros"),
            *("sft_hoyer", "preference_hoyer", "sign_conflict", "cosine", "rounded_back"),
        )
    }
    | {
        name: Column(name, percent=False)
        for name in ("sft_rank", "preference_rank", "sft_norm", "preference_norm")
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
    found = []
    for name in score_names(rows):
        values = [r[name] for r in rows if r.get(name) is not None and math.isfinite(r[name])]
        if values:
            shares = name not in lower and all(0 <= v <= 1 for v in values)
            found.append(Column(name, shares, name not in lower))
    return found
