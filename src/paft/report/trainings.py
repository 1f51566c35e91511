"""What belongs to the rows of a table beside their scores: adapters, step logs, reports of merges."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paft.report.labels import Differences, apart
from paft.report.names import TAKEN, objective_title
from paft.report.numbers import short
from paft.report.row import Row
from paft.report.table import merge_report

if TYPE_CHECKING:
    import pandas as pd

    from paft.report.plots import Adapter

log = logging.getLogger("paft")


def adapters(store: Path, block: Sequence[Row]) -> list["Adapter"]:
    """The measured adapters behind the rows: SFT by lambda, then preference."""
    from paft.report.plots import Adapter

    measured = []
    for branch in ("sft", "preference"):
        for label, row in trained(block, branch).items():
            share, hoyer = (row.measured(f"{branch}_{name}") for name in ("sparsity", "hoyer"))
            if share is not None:
                objective = row.preference if branch == "preference" else ""
                measured.append(Adapter(label, objective, share, hoyer))
    return measured


def trained(block: Sequence[Row], branch: str) -> dict[str, Row]:
    """A label for every adapter of `branch` behind the rows -> one row that uses it, by lambda.

    Adapters of one kind and lambda are told apart by the options in which they differ.
    """
    first: dict[str, Row] = {}
    for row in block:
        if row.key(branch):
            first.setdefault(row.key(branch), row)
    users = list(first.values())
    second = [r.trained_first not in ("", branch) for r in users]
    alone = Differences(
        [r for r, late in zip(users, second, strict=True) if not late], partial(_is_of, (branch,))
    )
    late = Differences(
        [r for r, late in zip(users, second, strict=True) if late], partial(_is_of, ("sft", "preference"))
    )
    texts = []
    for row, is_late in zip(users, second, strict=True):
        options = (late if is_late else alone).of(row)
        texts.append(" ".join([_with_lambda(_kind(row, branch), row), *options]))
    places = [""] * len(texts)
    for more in ([f"seed={row['seed']}" for row in users], [row.key(branch)[:6] for row in users]):
        texts = apart(texts, places, more)
    labels = {row.key(branch): text for row, text in zip(users, texts, strict=True)}
    users.sort(key=lambda r: (" on " in _kind(r, branch), "SFT" in _kind(r, branch) and (r.weight or 0.0)))
    return {labels[row.key(branch)]: row for row in users}


def _kind(row: Row, branch: str) -> str:
    """What an adapter is of, without its lambda."""
    if name := row.taken(branch):
        return f"{TAKEN}: {name}"
    sft = "SFT_sparse" if row.weight else "SFT"
    aligned = objective_title(row.preference)
    mine, other = (sft, aligned) if branch == "sft" else (aligned, sft)
    return f"{mine} on {other}" if row.trained_first not in ("", branch) else mine


def _with_lambda(kind: str, row: Row) -> str:
    return f"{kind}, λ={short(row.weight)}" if "SFT" in kind else kind


def _is_of(branches: Sequence[str], option: str) -> bool:
    """Whether an option is one of these trainings'."""
    groups = ("model", *branches, *(f"data.{branch}" for branch in branches))
    return option.startswith(tuple(f"{group}." for group in groups)) or option in ("callbacks", "seed")


def merge_reports(store: Path, block: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """The merge report of every merged pair of adapters, once: its deltas are the same for every method."""
    merged = [r for r in block if r.merged]
    pairs = {(r.key("sft"), r.key("preference")): r for r in merged}
    preference = trained(merged, "preference")
    reports = {}
    for label, sft in trained(merged, "sft").items():
        for other, aligned in preference.items():
            row = pairs.get((sft.key("sft"), aligned.key("preference")))
            report = merge_report(store, row) if row else {}
            if report.get("layers"):
                reports[f"{label} + {other}" if len(preference) > 1 else label] = report
    return reports


def histories(store: Path, block: Sequence[Row], branch: str) -> dict[str, "pd.DataFrame"]:
    """The step log of every adapter of `branch` behind the rows that still has one."""
    import pandas as pd

    logs = {}
    for label, row in trained(block, branch).items():
        path = store / branch / row.key(branch) / "history.csv"
        if path.is_file():
            try:
                logs[label] = pd.read_csv(path)
            except (OSError, ValueError) as error:
                log.warning("%s cannot be read: %s", path, error)
    return logs
