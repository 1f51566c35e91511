"""How rows are named: sections and methods of the paper's Table 1, and the options in which rows differ."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

from paft.report.names import TAKEN, merge_title, objective_title
from paft.report.numbers import plain_text
from paft.report.options import applies
from paft.report.row import Row

AMBIGUOUS = ("seed", "name", "limit")
"""Last parts of an option's name that mean another column when they stand alone."""
SHA256 = 64
"""Digits of one."""


def section(row: Row) -> str:
    """The heading of Table 1 that the row stands under."""
    aligned = objective_title(row.preference)
    if row.taken("sft") or row.taken("preference"):
        return f"Merged ({_sft(row)} + {_aligned(row)})" if row.merged else "Individual"
    if row.merged:
        return f"PAFT (SFT_sparse+{aligned})" if row.weight else f"Parallel SFT+{aligned}"
    if row.trained_first:
        return "Sequential"
    return "Joint" if row.paradigm == "joint" else "Individual"


def method(row: Row) -> str:
    """The row's name in Table 1."""
    sft, aligned = _sft(row), _aligned(row)
    match row.paradigm:
        case "parallel":
            return merge_title(row.merge)
        case "sequential":
            return f"{sft}+{aligned}"
        case "preference_first":
            return f"{aligned}+{sft}"
        case "expo":
            return f"{sft}+{aligned}, ExPO"
        case "joint":
            return f"SFT and {aligned}"
        case "sft":
            return sft if row.taken("sft") else f"{sft}-alone"
        case "preference":
            return aligned if row.taken("preference") else f"{aligned}-alone"
    return row.base


def _sft(row: Row) -> str:
    if name := row.taken("sft"):
        return f"{TAKEN}: {name}"
    return "SFT_sparse" if row.weight else "SFT"


def _aligned(row: Row) -> str:
    name = row.taken("preference")
    return f"{TAKEN}: {name}" if name else objective_title(row.preference)


def has_dense(rows: Sequence[Row]) -> bool:
    """Whether SFT without the penalty is behind any of them."""
    return any(r.weight == 0 for r in rows)


def labels(rows: Sequence[Row]) -> list[str]:
    """`method` of each row, with the options in which rows differ (`Differences`).

    lambda is left out, as it has a column of its own. Rows of one section and lambda that are still alike get their
    seed, or the start of their key.
    """
    objectives: dict[str, set[str]] = {}
    for row in rows:
        objectives.setdefault(method(row), set()).add(row.preference)
    differences, texts = Differences(rows), []
    for row in rows:
        several = len(objectives[method(row)]) > 1 and row.preference
        objective = [objective_title(row.preference)] if several else []
        texts.append(" ".join([method(row), *objective, *differences.of(row)]))
    places = [(section(r), r.weight) for r in rows]
    seeds = [f"seed={r['seed']}" for r in rows]
    return apart(apart(texts, places, seeds), places, [r.evaluate_key[:6] for r in rows])


def without_penalty(label: str) -> str:
    """A label without the options of the penalty, as that of the row at lambda = 0 is."""
    return " ".join(word for word in label.split() if not word.startswith(("l1.", "sft.l1.")))


def apart(texts: Sequence[str], places: Sequence[Any], more: Sequence[str]) -> list[str]:
    """The texts, those that stand twice in one place with `more` behind them where that tells them apart."""
    alike: dict[Any, set[str]] = {}
    count = Counter(zip(places, texts, strict=True))
    for place, text, end in zip(places, texts, more, strict=True):
        alike.setdefault((place, text), set()).add(end)
    return [
        f"{text} {end}" if count[place, text] > 1 and len(alike[place, text]) > 1 else text
        for text, place, end in zip(texts, places, more, strict=True)
    ]


# --- options -----------------------------------------------------------------------------------------


class Differences:
    """The options in which the rows of a table differ, as far as they are `asked` for, and which rows name them.

    A merge's options are compared within its method, those of preference training within its objective, all others
    over the whole table. A row names an option where rows of its method and objective differ in it, and where its
    value is not the table's commonest; `unnamed` says what the others have.
    """

    def __init__(self, rows: Sequence[Row], asked: Callable[[str], bool] = lambda _: True) -> None:
        self.rows = rows
        self.known = list(dict.fromkeys(name for row in rows for name in row.options if asked(name)))
        if not all(row.is_cell for row in rows) and asked("seed"):
            self.known.append("seed")
        self._values: dict[tuple[str, ...], Counter[Any]] = {}

    def of(self, row: Row) -> list[str]:
        """`name=value` of every option that the row names."""
        return [f"{name}={_value(value)}" for name, value in self._named(row).items()]

    def unnamed(self) -> list[str]:
        """`name=value` of the options that some rows could name and do not, in the values these rows have."""
        names: dict[str, None] = {}
        for row in self.rows:
            named = self._named(row, everything=True)
            hidden = named.items() - self._named(row).items()
            names |= dict.fromkeys(
                f"{name}={_value(named[name])}" for name in named if (name, named[name]) in hidden
            )
        return list(names)

    def _named(self, row: Row, *, everything: bool = False) -> dict[str, Any]:
        names = [n for n in self.known if applies(row, n) and row.option(n) is not None]
        shown = [n for n in names if self._differs(n, row) and (everything or self._is_named(n, row))]
        values = {short_name(n, self.known): row.option(n) for n in shown}
        return _joined(values)

    def _differs(self, option: str, row: Row) -> bool:
        return len(self._among(option, _compared_within(option, row))) > 1

    def _is_named(self, option: str, row: Row) -> bool:
        values = self._among(option, _compared_within(option, row))
        differ = len(self._among(option, _peers(row))) > 1
        return differ or values[str(row.option(option))] < max(values.values())

    def _among(self, option: str, place: tuple[str, ...]) -> Counter[Any]:
        """How often each value of the option stands in rows of this method, objective or both."""
        if (option, *place) not in self._values:
            rows = [r for r in self.rows if {*place} <= {*_peers(r)} and applies(r, option)]
            if option == "merge.seed" and all(r.option(option) == r["seed"] for r in rows):
                rows = rows[:1]  # it follows the training's
            self._values[option, *place] = Counter(str(r.option(option)) for r in rows)
        return self._values[option, *place]


def _peers(row: Row) -> tuple[str, ...]:
    return f"paradigm {row.paradigm}", f"merge {row.merge}", f"preference {row.preference}"


def _compared_within(option: str, row: Row) -> tuple[str, ...]:
    group = option.partition(".")[0]
    return tuple(place for place in _peers(row) if place.startswith(f"{group} "))


def short_name(option: str, known: Collection[str]) -> str:
    """An option without its group where that leaves no doubt: `loss`, `l1.method`, but `sft.lr`."""
    group, _, rest = option.partition(".")
    if group in ("data", "evaluate") or rest in AMBIGUOUS:
        return option
    others = (f"{other}.{rest}" for other in ("model", "sft", "preference", "merge") if other != group)
    return option if not rest or (group != "merge" and any(name in known for name in others)) else rest


def _joined(values: dict[str, Any]) -> dict[str, Any]:
    """An option that both branches of the row were given alike is named once."""
    joined = dict(values)
    for mine, value in values.items():
        rest = mine.removeprefix("sft.")
        if mine != rest and values.get(f"preference.{rest}") == value:
            joined = {rest if name == mine else name: v for name, v in joined.items()}
            del joined[f"preference.{rest}"]
    return joined


def _value(value: Any) -> str:
    return value[:8] if isinstance(value, str) and len(value) == SHA256 else plain_text(value)
