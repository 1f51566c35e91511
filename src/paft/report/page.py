"""index.html: one page without scripts, fonts or anything else from elsewhere; pictures lie beside it.

The template escapes every value (jinja2's autoescape), so a model named `<script>` is only an odd name.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from paft.report.claims import CLAIMS
from paft.report.findings import Finding, Verdict, flat
from paft.report.labels import Column, Row, Scope, labels, ranked, score_columns, section, short
from paft.report.paper import printed, printed_effects
from paft.store.provenance import git_state
from paft.training.target import missed

CAPTIONS = {
    "scores_by_lambda": "A line per merge method; level lines are what there is without merging.",
    "scores_by_method": "Pale bars: SFT without the L1 penalty.",
    "lambda_by_merge": "The plain variant of each method; λ=0 is merging without the penalty.",
    "pareto": "Dashed, the best of two; ringed, the cells that no other beats in all three; hollow, λ=0.",
    "sparsity": "Left, the paper’s measure, which also counts an adapter that hardly moved. "
    "Right, one that does not change when the delta is scaled.",
    "conflict_by_layer": "Where the two deltas push in opposite directions, and the cosine between them.",
    "training_sft": "Without the penalty the L1 part is zero.",
    "training_preference": "Chosen and rejected stand apart: their margin also grows while both fall.",
}


@dataclass(frozen=True)
class Block:
    """One table of the page: rows that may be compared, and the PNG files drawn from them."""

    scope: Scope
    rows: list[Row]
    pictures: list[str]
    """File names `<number>-<figure>.png`."""
    findings: list[Finding]


def page(blocks: Sequence[Block], table: Sequence[Row], paper: Sequence[Mapping[str, Any]] = ()) -> str:
    """The whole HTML document; `table` has a row for every evaluation, `paper` those of `read_paper`."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(Path(__file__).with_name("page.html").read_text())
    every = ranked(table)
    git = git_state()
    return template.render(
        generated=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        commit=git["commit"],
        changed=git["dirty"],
        warnings=warnings(every),
        blocks=[_block(block, paper) for block in blocks],
        cells=_cells(every),
    )


def warnings(rows: Sequence[Row]) -> list[str]:
    """What a reader must know before looking at any number."""
    found = []
    limited = sum(r["limit"] is not None for r in rows)
    if limited:
        found.append(
            f"{limited} of {len(rows)} rows were scored on the first few items of each task only "
            "(evaluate.limit): good for trying things out, not for a result."
        )
    short = {r["sft_key"]: (r["l1_target"], r["l1_reached"]) for r in rows if r.get("l1_reached") is not None}
    found += list(dict.fromkeys(said for target, share in short.values() if (said := missed(target, share))))
    if any(r["base"] == "tiny" for r in rows):
        found.append("The model “tiny” has random weights: its numbers check the machinery and mean nothing.")
    return found


def lowered(label: str) -> Markup:
    """`label`, escaped, with SFT_sparse as the paper prints it."""
    return Markup(escape(label).replace("SFT_sparse", Markup("SFT<sub>sparse</sub>")))


def _block(block: Block, paper: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    scope, found = block.scope, score_columns(block.rows)
    best = [c.best(block.rows) for c in found]
    named = list(zip(block.rows, labels(block.rows), strict=True))
    data = " + ".join(filter(None, (scope.sft_data, scope.preference_data)))
    sources = list(dict.fromkeys(base for r in block.rows for base in printed(paper, r)))
    facts = {"trained on": data, "evaluated by": scope.evaluate, "chat template": scope.template}
    return {
        "title": scope.base,
        "facts": facts | ({"items per task": scope.limit} if scope.limit else {}),
        "columns": [c.title for c in found],
        "paper": sources,
        "claims": [_claim(f, paper) for f in block.findings],
        "seeds": max((r["num_seeds"] for r in block.rows), default=1),
        "sections": [
            (
                lowered(heading),
                [_line(r, label, found, best, printed(paper, r), sources) for r, label in group],
            )
            for heading, group in groupby(named, key=lambda pair: section(pair[0]))
        ],
        "pictures": [
            (name, CAPTIONS[name.partition("-")[2].removesuffix(".png")]) for name in block.pictures
        ],
    }


def _line(
    row: Row,
    label: str,
    columns: Sequence[Column],
    best: Sequence[float | None],
    paper: Mapping[str, float],
    sources: Sequence[str],
) -> dict[str, Any]:
    scores = []
    for column, top in zip(columns, best, strict=True):
        value, error = column.value(row), column.error(row)
        scores.append((column.text(value), f"±{error}" if error else "", value is not None and value == top))
    shares = [_percent(row[f"{branch}_sparsity"]) for branch in ("sft", "preference")]
    beside = [f"{100 * paper[base]:.2f}" if base in paper else "–" for base in sources]
    found = {"label": lowered(label), "lambda": short(row["lambda"]), "scores": scores, "shares": shares}
    return found | {"paper": beside, "seeds": row["num_seeds"] if row["seed"] is not None else "–"}


def _claim(finding: Finding, paper: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row of the claims table, in percentage points."""
    row = flat(finding)
    interval = "" if row["low"] is None else f"{row['low']:+.2f} … {row['high']:+.2f}"
    claim = next((c for c in CLAIMS if c.name == finding.claim), None)
    theirs = printed_effects(paper, claim, finding.preference) if claim else {}
    where = [finding.preference.upper(), f"λ={short(finding.weight)}" if finding.weight else ""]
    return row | {
        "where": " ".join(filter(None, where)),
        "effect": "–" if row["effect"] is None else f"{row['effect']:+.2f}",
        "interval": interval,
        "p": "–" if row["p_corrected"] is None else f"{row['p_corrected']:.2g}",
        "paper": [f"{base}: {100 * value:+.2f}" for base, value in theirs.items()],
        "style": {Verdict.held: "held", Verdict.did_not_hold: "failed"}.get(finding.verdict, "open"),
        "keys": finding.keys,
    }


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _cells(rows: Sequence[Row]) -> list[dict[str, Any]]:
    keys = ("sft_key", "preference_key", "merge_key", "evaluate_key")
    return [
        {
            "name": lowered(
                f"{r['base']}: {section(r)}" if r["paradigm"] == "parallel" else f"{r['base']}: {label}"
            ),
            "lambda": short(r["lambda"]),
            "variant": r["variant"] or "–",
            "rates": " / ".join(short(r[name]) for name in ("sft_lr", "preference_lr")),
            "seed": "–" if r["seed"] is None else r["seed"],
            "sign_conflict": _percent(r["sign_conflict"]),
            "rounded_back": _percent(r["rounded_back"]),
            "keys": [(name.removesuffix("_key"), r[name]) for name in keys if r[name]],
        }
        for r, label in zip(rows, labels(rows), strict=True)
    ]
