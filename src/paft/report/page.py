"""index.html: one page without scripts, fonts or anything else from elsewhere; pictures lie beside it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from paft.graph.stages import TRAINED
from paft.report.backends import backends, mixed
from paft.report.claims import CLAIMS
from paft.report.findings import Finding, flat
from paft.report.html import html
from paft.report.labels import labels, section
from paft.report.measured import chosen
from paft.report.numbers import DASH, percent, plain_text, short
from paft.report.paper import printed_effects
from paft.report.row import Row
from paft.report.scope import Scope, blocks, title
from paft.report.stored import not_stored
from paft.report.table import COMMAND
from paft.report.tables import Entry, Head, Line, Section, Table, cells_table, claims_table
from paft.store.provenance import git_state
from paft.training.target import missed


@dataclass(frozen=True)
class Block:
    """One table of the page: rows that may be compared, and the PNG files drawn from them."""

    scope: Scope
    rows: list[Row]
    pictures: list[tuple[str, str]]
    """(file name `<number>-<picture>.png`, caption)."""
    findings: list[Finding]


def page(
    blocks: Sequence[Block],
    table: Sequence[Row],
    paper: Sequence[Mapping[str, Any]] = (),
    store: Path = Path("<store>"),
) -> str:
    """The whole HTML document; `table` has a row for every evaluation, `paper` those of `read_paper`.

    `store` is where the keys are folders.
    """
    git = git_state()
    values = {
        "generated": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "commit": git["commit"],
        "changed": git["dirty"],
        "warnings": warnings(table, paper),
        "blocks": [_block(block, table, paper, store) for block in blocks],
        "evaluations": evaluations(table),
        "store": store,
    }
    return html("page.html", values, {"lowered": lowered})


def warnings(rows: Sequence[Row], paper: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """What a reader must know before looking at any number."""
    cautions = []
    limited = sum(r["limit"] is not None for r in rows)
    if limited:
        cautions.append(
            f"{limited} of {len(rows)} rows were scored on the first few items of each task only "
            "(evaluate.limit): good for trying things out, not for a result."
        )
    targets = {
        r["sft_key"]: (r["l1_target"], r["l1_reached"]) for r in rows if r.get("l1_reached") is not None
    }
    cautions += list(
        dict.fromkeys(said for target, share in targets.values() if (said := missed(target, share)))
    )
    cautions += dict.fromkeys(said for _, together in blocks(rows) for said in mixed(together))
    cautions += not_stored(rows)
    if any(r.base == "tiny" for r in rows):
        cautions.append(
            "The model “tiny” has random weights: its numbers check the machinery and mean nothing."
        )
    if paper:
        bases = ", ".join(dict.fromkeys(str(r["base"]) for r in paper))
        cautions.append(
            f"The paper’s columns are averages of other models ({bases}) over other tasks, the six of the Open LLM "
            "Leaderboard: compare the order of their rows with ours, never a number with a number."
        )
    return cautions


def lowered(label: str) -> Markup:
    """`label`, escaped, with SFT_sparse as the paper prints it."""
    return Markup(escape(label).replace("SFT_sparse", Markup("SFT<sub>sparse</sub>")))


# --- a block -----------------------------------------------------------------------------------------


def _block(
    block: Block, table: Sequence[Row], paper: Sequence[Mapping[str, Any]], store: Path
) -> dict[str, Any]:
    scope = block.scope
    facts = {"trained on": scope.data, "evaluated by": scope.evaluate, "chat template": scope.template}
    facts |= {"scores by": ", ".join(backends(block.rows))}
    by_key = {r.evaluate_key: r for r in table}
    details = {r.evaluate_key: _details([by_key[k] for k in r.evaluate_keys], store) for r in block.rows}
    return {
        "title": title(scope, block.rows),
        "facts": facts | ({"items per task": scope.limit} if scope.limit else {}),
        "cells": cells_table(block.rows, paper=paper, details=details),
        "claims": _claims(block.findings, paper),
        "pictures": block.pictures,
    }


def _details(seeds: Sequence[Row], store: Path) -> list[tuple[str, str]]:
    """Where the models of a cell are, what a greedy soup chose, and the commands that made it, seed by seed."""
    details = []
    for row in seeds:
        of = f", seed {row.seed}" if len(seeds) > 1 else ""
        merged = store / "merge" / row.key("merge")
        if row.key("merge"):
            gone = "" if merged.is_dir() else " (not there any more, or on another machine)"
            details.append((f"model{of}", f"{merged}{gone}"))
        folders = {branch: store / branch / row.key(branch) for branch in TRAINED if row.key(branch)}
        soups = {branch: chosen(folder) for branch, folder in folders.items()}
        details += [(f"{branch} soup{of}", said) for branch, said in soups.items() if said]
        details.append((f"scores{of}", str(store / "evaluate" / row.evaluate_key)))
        if row.get(COMMAND):
            details.append((f"made by{of}", str(row[COMMAND])))
    return details


def _claims(findings: Sequence[Finding], paper: Sequence[Mapping[str, Any]]) -> Table:
    if not paper:
        return claims_table([*map(flat, findings)])
    claims = {claim.name: claim for claim in CLAIMS}
    beside = [
        printed_effects(paper, claims[f.claim], f.preference) if f.claim in claims else {} for f in findings
    ]
    return claims_table([*map(flat, findings)], beside)


# --- every evaluation --------------------------------------------------------------------------------

KEYS = ("sft", "preference", "merge", "evaluate")


def evaluations(table: Sequence[Row]) -> Table:
    """A line for every evaluation with the folders of its stages."""
    head = [Head("row", numeric=False), Head("λ"), Head("variant", numeric=False)]
    head += [Head(text) for text in ("lr SFT / pref.", "seed", "conflict %", "rounded back %")]
    head += [Head(text, numeric=False) for text in ("scores by", "folders")]
    sections, seen = [], set[str]()
    for scope, block in blocks(table):
        named = zip(block, labels(block), strict=True)
        new = [(row, label) for row, label in named if row.evaluate_key not in seen]
        seen |= {row.evaluate_key for row, _ in new}
        sections.append(Section(title(scope, block), [_evaluation(row, label) for row, label in new]))
    return Table(head, [part for part in sections if part.lines])


def _evaluation(row: Row, label: str) -> Line:
    name = f"{section(row)}: {label}" if row.merged else label
    rates = " / ".join(short(row.get(f"{branch}_lr")) for branch in ("sft", "preference"))
    texts = [name, short(row.weight), row["variant"] or DASH, rates, plain_text(row["seed"])]
    texts += [percent(row[measure]) for measure in ("sign_conflict", "rounded_back")]
    texts.append(", ".join(backends([row])) or DASH)
    keys = Entry("\n".join(f"{stage}/{row.key(stage)}" for stage in KEYS if row.key(stage)), tone="code")
    return Line([*map(Entry, texts), keys])
