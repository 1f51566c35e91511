"""How rows are named: sections and methods of the paper's Table 1, and the options in which rows differ."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

from paft.report.names import merge_title, objective_title
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
    if row.merged:
        return f"PAFT (SFT_sparse+{aligned})" if row.weight else f"Parallel SFT+{aligned}"
    return "Sequential" if row.paradigm == "sequential" else "Individual"


def method(row: Row) -> str:
    """The row's name in Table 1."""
    sft, aligned = "SFT_sparse" if row.weight else "SFT", objective_title(row.preference)
    match row.paradigm:
        case "parallel":
            return merge_title(row.merge)
        case "sequential":
            return f"{sft}+{aligned}"
        case "sft":
            return f"{sft}-alone"
        case "preference":
            return f"{aligned}-alone"
    return row.base


def has_dense(rows: Sequence[Row]) -> bool:
    """Whether SFT without the penalty is behind any of them."""
    return any(r.weight == 0 for r in rows)


def labels(rows: Sequence[Row]) -> list[str]:
    """`method` of each row, with the options in which rows of that method and objective differ.

    lambda is left out, as it has a column of its own. Rows of one section and lambda that are still alike get the
    start of their key.
    """
    peers: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        peers.setdefault(_peers(row), []).append(row)
    several = {name for name, count in Counter(name for name, _ in peers).items() if count > 1}
    naming = {of: option_names(group) for of, group in peers.items()}
    texts = []
    for row in rows:
        objective = [objective_title(row.preference)] if method(row) in several and row.preference else []
        texts.append(" ".join([method(row), *objective, *described(row, naming[_peers(row)])]))
    places = [(section(r), r.weight) for r in rows]
    seeds = [f"seed={r['seed']}" for r in rows]
    return apart(apart(texts, places, seeds), places, [r.evaluate_key[:6] for r in rows])


def without_penalty(label: str) -> str:
    """A label without the options of the penalty, as that of the row at lambda = 0 is."""
    return " ".join(word for word in label.split() if not word.startswith(("l1.", "sft.l1.")))


def _peers(row: Row) -> tuple[str, str]:
    return method(row), row.preference


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


def option_names(rows: Sequence[Row], asked: Callable[[str], bool] = lambda _: True) -> dict[str, str]:
    """The options in which the rows differ, among those `asked` for -> the name they get in a label."""
    known = dict.fromkeys(name for row in rows for name in row.options if asked(name))
    differing = [name for name in known if _differs(name, rows)]
    if not all(row.is_cell for row in rows) and asked("seed") and len({row["seed"] for row in rows}) > 1:
        differing.append("seed")
    return _joined({name: short_name(name, known) for name in differing}, rows)


def described(row: Row, names: dict[str, str]) -> list[str]:
    """`name=value` of every option that the row has."""
    found = [(text, row.option(name)) for name, text in names.items() if applies(row, name)]
    return [f"{text}={_value(value)}" for text, value in found if value is not None]


def short_name(option: str, known: Collection[str]) -> str:
    """An option without its group where that leaves no doubt: `loss`, `l1.method`, but `sft.lr`."""
    group, _, rest = option.partition(".")
    if group in ("data", "evaluate") or rest in AMBIGUOUS:
        return option
    others = (f"{other}.{rest}" for other in ("model", "sft", "preference", "merge") if other != group)
    return option if not rest or (group != "merge" and any(name in known for name in others)) else rest


def _differs(option: str, rows: Sequence[Row]) -> bool:
    having = [row for row in rows if applies(row, option)]
    if option == "merge.seed" and all(row.option(option) == row["seed"] for row in having):
        return False  # it follows the training's
    return len({str(row.option(option)) for row in having}) > 1


def _joined(names: dict[str, str], rows: Sequence[Row]) -> dict[str, str]:
    """An option that both branches of every row were given alike is named once."""
    joined = dict(names)
    for mine in names:
        rest = mine.removeprefix("sft.")
        theirs = f"preference.{rest}"
        both = theirs in names and all(applies(r, mine) and applies(r, theirs) for r in rows)
        if mine != rest and both and all(r.option(mine) == r.option(theirs) for r in rows):
            del joined[theirs]
            joined[mine] = rest
    return joined


def _value(value: Any) -> str:
    return value[:8] if isinstance(value, str) and len(value) == SHA256 else plain_text(value)
