"""The rows that a word on the command line means: keys, their beginnings, or `column=value,...`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from paft.report.cells import members
from paft.report.numbers import plain_text
from paft.report.options import ALIASES, column_of
from paft.report.row import Row, is_option

SETTINGS = ("base", "data", "paradigm", "preference", "lambda", "merge", "evaluate", "limit", "template")
"""What may tell cells apart, beside the options."""
DERIVED = ("seed", "norm", "variant")
"""What rows may be selected by and says nothing that their settings do not say; `norm` is `own` where no option is."""
KEYS = ("evaluate_key", "merge_key", "family")


@dataclass(frozen=True)
class Selection:
    """The rows that a word on the command line means."""

    text: str
    rows: list[Row]
    named: frozenset[str]
    """Columns the word gives a value for."""

    @property
    def cells(self) -> dict[str, list[Row]]:
        return members(self.rows)


def select(table: Sequence[Row], text: str) -> Selection:
    """The rows with a key that begins with `text`, or those with the given value in every column named."""
    if "=" not in text:
        return _by_key(table, text)
    conditions = {}
    for part in re.split(r",(?=[\w.]+=)", text):
        name, _, value = part.partition("=")
        conditions[name.strip()] = value.strip()
    chosen = list(table)
    for name, value in conditions.items():
        column = column_of(name)
        require_setting(name, column, table)
        there = list(dict.fromkeys(text_of(r.get(column)) for r in chosen))
        chosen = [r for r in chosen if _same(r.get(column), value)]
        if not chosen:
            raise ValueError(f"{text}: no cell has {name}={value}; there are {', '.join(there)}")
    named = {*map(column_of, conditions)} | ({"merge.norm"} if "norm" in conditions else set())
    return Selection(text, chosen, frozenset(named))


def require_setting(name: str, column: str, table: Sequence[Row]) -> None:
    """Raise `ValueError` for a column that is no setting of any row, naming those in which rows differ."""
    known = {c for r in table for c in r if c in (*SETTINGS, *DERIVED) or is_option(c)}
    if column in known:
        return
    near = get_close_matches(name, {*known, *ALIASES}, n=3, cutoff=0.7)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    differing = sorted(c for c in known if len({exact(r.get(c)) for r in table} - {"none"}) > 1)
    raise ValueError(
        f"there is no setting {name!r} to select by; {hint}there are {', '.join(differing)}, in which rows differ, and "
        f"{len(known) - len(differing)} more in results.csv, named as on the command line"
    )


def _by_key(table: Sequence[Row], text: str) -> Selection:
    if not re.fullmatch("[0-9a-f]{1,16}", text):
        raise ValueError(
            f"{text!r} is neither the beginning of a key nor a selector such as lambda=1e-4,merge=ties"
        )
    for column in KEYS:
        chosen = [r for r in table if str(r[column]).startswith(text)]
        keys = sorted({r[column] for r in chosen})
        if len(keys) > 1:
            raise ValueError(f"{len(keys)} keys begin with {text}: {', '.join(keys)}; give more of it")
        if chosen:
            return Selection(text, chosen, frozenset())
    raise ValueError(f"no finished evaluation or merge has a key that begins with {text}; see results.csv")


def _same(value: object, text: str) -> bool:
    """Whether `text` means the value: any notation of a number, also as tables shorten it."""
    if text.lower() == text_of(value).lower():
        return True
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and float(text) == value
    except ValueError:
        return text.lower() == exact(value).lower()


def text_of(value: object) -> str:
    """As it is shown."""
    return "none" if value in (None, "") else plain_text(value)


def exact(value: object) -> str:
    """With every digit, to tell settings apart."""
    return "none" if value in (None, "") else str(value)
