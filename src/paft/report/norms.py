"""lambda shrinks the SFT delta as well as its support: scores by lambda are shown at own norm and at equal norm."""

import shlex
from collections.abc import Mapping, Sequence

from paft.config import Norm
from paft.report.numbers import short
from paft.report.row import Row
from paft.report.table import COMMAND

TITLES: Mapping[str, str] = {
    "own": "own norm",
    "branches": "equal norm",
    "merged": "merged at equal norm",
    "preference": "SFT at the preference norm",
}
"""`merge.norm` as pictures and tables write it."""
SWEPT = ("lambda", "merge", "seed", "merge.norm")
"""Keys of which the command for the missing side has a list, or its own value."""


def norms(rows: Sequence[Row]) -> list[str]:
    """The `merge.norm` of the merged rows, in the order of its choices."""
    there = {r.norm for r in rows}
    return [norm.value for norm in Norm if norm.value in there]


def one_sided(rows: Sequence[Row], beside: Sequence[Row] = ()) -> list[str]:
    """A sentence with the command that adds the other side, where merges of several lambdas stand at one norm alone,
    those `beside` them too."""
    merged = [r for r in rows if r.merged]
    sides = {r.norm for r in (*merged, *beside)} & {"own", "branches", "preference"}
    if len(sides) != 1 or len({r.weight for r in merged}) < 2:
        return []
    (mine,) = sides
    other = "branches" if mine == "own" else "own"
    command = command_at(other, [r for r in merged if r.norm == mine])
    return [
        f"These lambdas are compared at {TITLES[mine]} alone, and lambda changes a delta's norm as well as its "
        f"support. At {TITLES[other]}: {command or f'the same command with merge.norm={other}'}"
    ]


def command_at(norm: str, rows: Sequence[Row]) -> str:
    """The grid of these rows' lambdas and merges at another norm, if their own commands are alike otherwise; else
    empty."""
    given = [_words(r) for r in rows]
    if not all(given) or any(words != given[0] for words in given):
        return ""
    lists = {
        "lambda": [short(w) for w in sorted({r.weight or 0.0 for r in rows})],
        "merge": list(dict.fromkeys(r.merge for r in rows)),
    }
    seeds = sorted({seed for r in rows for seed in str(r["seeds"] if r.is_cell else r.seed).split(",")})
    if any(" seed=" in str(r.get(COMMAND)) for r in rows):
        lists["seed"] = seeds
    swept = [f"{key}={','.join(values)}" for key, values in lists.items()]
    return shlex.join([*given[0], "-m", *swept, f"merge.norm={norm}"])


def _words(row: Row) -> list[str]:
    """A row's command without what is swept; empty where it is not known."""
    words = shlex.split(str(row.get(COMMAND) or ""))
    return [word for word in words if word.lstrip("+").partition("=")[0] not in SWEPT]
