"""The report as a W&B report, from the same cells and findings as index.html, its twin without W&B.

Run sets, bars and scatter plots are drawn by W&B from the cells' runs (`paft.tracking.run.log_cell`); the table of the
paper's shape, the lambda x merge table and the claims are text, as means over seeds and intervals are not in any run.
"""

import json
import logging
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paft.config import Wandb
from paft.files.jsonfile import read_object, write_json
from paft.report.build import Study, studies
from paft.report.findings import flat
from paft.report.labels import SECTIONS, TITLES, Column, Row, labels, score_columns, section, short
from paft.report.plain import plain
from paft.report.study_plots import PARETO
from paft.report.table import require_rows
from paft.tracking.run import mode, survive

if TYPE_CHECKING:
    from wandb_workspaces.reports import v2 as wr

log = logging.getLogger("paft")

SPEC = "wandb_report.json"
TITLE = "PAFT: parallel, sequential and single training compared"


def publish(store: Path, out: Path, settings: Wandb) -> str:
    """Write `<out>/wandb_report.json` and, where there is a key, save the report to W&B; returns where it is.

    Saved again it replaces what it saved before: the file holds its id. W&B being away costs only the upload. Raises
    `ValueError` for a store without a finished evaluation.
    """
    table = require_rows(store)
    path, online = out / SPEC, mode(settings) == "online"
    spec = build(studies(store, table), project=settings.project, entity=settings.entity or "")
    known = str(read_object(path).get("id") or "") if path.is_file() else ""
    url = survive("saving the report", lambda: _save(spec, known, settings)) if online else None
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, json_spec(spec) | {"id": spec.id or known})
    return url or str(path)


def _save(report: "wr.Report", known: str, settings: Wandb) -> str:
    import wandb

    report.id, report.entity = known, settings.entity or str(wandb.Api().default_entity)
    report.save()
    return str(report.url)


def json_spec(report: "wr.Report") -> dict[str, Any]:
    """What `Report.save` would send, asking no server: its title, project and the specification of its blocks."""
    model = report._to_model()
    spec = json.loads(model.spec.model_dump_json(by_alias=True, exclude_none=True))
    return {
        "displayName": report.title,
        "projectName": report.project,
        "entityName": report.entity,
        "spec": spec,
    }


def build(found: Sequence[Study], *, project: str, entity: str) -> "wr.Report":
    """The report over these studies; nothing is sent or asked."""
    from wandb_workspaces.reports import v2 as wr

    blocks: list[Any] = [wr.TableOfContents()]
    for study in found:
        scope, columns = study.scope, score_columns(study.cells)
        trained = " + ".join(filter(None, (scope.sft_data, scope.preference_data)))
        blocks += [
            wr.H1(f"{scope.base}: {scope.evaluate}"),
            wr.P(f"Trained on {trained or 'nothing'}; scores are means over seeds, ± one standard error."),
            wr.H2("Every cell, as in the paper's Table 1"),
            wr.MarkdownBlock(paper_shaped(study.cells, columns)),
            wr.H2("Average by lambda and merge"),
            wr.MarkdownBlock(lambda_by_merge(study.cells, columns)),
            wr.H2("The paper's claims on these cells"),
            wr.MarkdownBlock(claims_table(study)),
            wr.H2("Runs, by paradigm"),
            wr.PanelGrid(runsets=_run_sets(study), panels=_panels(study.cells, columns)),
        ]
    # an entity left out would be asked of the server
    return wr.Report(project=project, entity=entity, title=TITLE, blocks=blocks, width="fluid")


# --- panels ------------------------------------------------------------------------------------------


def _run_sets(study: Study) -> list["wr.Runset"]:
    """A run set for each paradigm there is. Without a project of its own each takes the report's.

    By keys, as wandb-workspaces 0.4.13 cannot filter by text with a quote, and changes < to <=.
    """
    from wandb_workspaces.reports import v2 as wr

    found = []
    for paradigm in SECTIONS:
        keys = [k for r in study.cells if r["paradigm"] == paradigm for k in r["evaluate_keys"].split()]
        if keys:
            found.append(wr.Runset(name=paradigm, filters=f"Config('evaluate_key') in {keys}"))
    return found


def _panels(cells: Sequence[Row], columns: Sequence[Column]) -> list[Any]:
    from wandb_workspaces.reports import v2 as wr

    names = {c.name for c in columns}
    half, metric = wr.Layout(w=12, h=10), wr.SummaryMetric
    found: list[Any] = [
        wr.BarPlot(title=c.title, metrics=[metric(c.name)], orientation="h", layout=half) for c in columns
    ]
    for branch in ("sft", "preference"):
        title = f"Share of the {branch} delta below 1e-5 (figure 2)"
        found.append(wr.BarPlot(title=title, metrics=[metric(f"{branch}_sparsity")], layout=half))
    for skill, other, kept in (triple for triple in PARETO if set(triple) <= names):
        for x, y in ((kept, skill), (kept, other), (skill, other)):
            found.append(wr.ScatterPlot(title=f"{y} against {x}", x=metric(x), y=metric(y), layout=half))
    axes: list[Any] = [wr.Config("lambda"), wr.Config("merge"), *(metric(c.name) for c in columns)]
    lines = [wr.ParallelCoordinatesPlotColumn(metric=m) for m in axes]
    found.append(
        wr.ParallelCoordinatesPlot(title="Options and scores", columns=lines, layout=wr.Layout(w=24, h=10))
    )
    return found


# --- text --------------------------------------------------------------------------------------------


def paper_shaped(cells: Sequence[Row], columns: Sequence[Column]) -> str:
    """The table of index.html in Markdown: sections and rows of the paper's Table 1."""
    head = ["method", "λ", "seeds", *(c.title for c in columns), "SFT < 1e-5"]
    lines = []
    for heading, group in groupby(zip(cells, labels(cells), strict=True), key=lambda pair: section(pair[0])):
        lines.append([f"**{_plain(heading)}**", *[""] * (len(head) - 1)])
        for row, label in group:
            share = "–" if row["sft_sparsity"] is None else f"{100 * row['sft_sparsity']:.1f} %"
            seeds = "–" if row["seed"] is None else str(row["num_seeds"])
            scores = [_score(c, row) for c in columns]
            lines.append([_plain(label), short(row["lambda"]), seeds, *scores, share])
    return _table(head, lines)


def lambda_by_merge(cells: Sequence[Row], columns: Sequence[Column]) -> str:
    """The numbers of the heat map: a row for each objective and merge method, a column for each lambda."""
    merged = [r for r in plain(cells) if r["paradigm"] == "parallel"]
    average = next((c for c in columns if c.name == "average"), None)
    if not merged or average is None:
        return "No merged cells."
    weights = sorted({r["lambda"] for r in merged})
    places = {(r["preference"], r["merge"], r["lambda"]): _score(average, r) for r in merged}
    lines = [
        [f"{TITLES.get(m, m)} {p.upper()}", *(places.get((p, m, w), "–") for w in weights)]
        for p, m in dict.fromkeys((r["preference"], r["merge"]) for r in merged)
    ]
    return _table(["merge", *(f"λ={short(w)}" for w in weights)], lines)


def claims_table(study: Study) -> str:
    head = [
        "claim",
        "with",
        "λ",
        "verdict",
        "effect, points",
        "95 % interval",
        "p, corrected",
        "items",
        "seeds",
    ]
    lines = []
    for f in map(flat, study.findings):
        interval = "–" if f["low"] is None else f"{f['low']:+.2f} … {f['high']:+.2f}"
        effect = "–" if f["effect"] is None else f"{f['effect']:+.2f}"
        p = "–" if f["p_corrected"] is None else f"{f['p_corrected']:.2g}"
        sizes = [str(f[name] or "–") for name in ("num_items", "num_seeds")]
        lines.append(
            [
                f["claim"],
                f["preference"].upper(),
                short(f["lambda"]),
                f["verdict"],
                effect,
                interval,
                p,
                *sizes,
            ]
        )
    return _table(head, lines)


def _score(column: Column, row: Row) -> str:
    error = column.error(row)
    return column.text(column.value(row)) + (f" ± {error}" if error else "")


def _plain(text: str) -> str:
    """No character of a name is read as Markdown or as the border of a cell."""
    for mark in "\\|*_`<>[]":
        text = text.replace(mark, f"\\{mark}")
    return text


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *lines))
