"""The report as a W&B report, from the same cells and findings as index.html, its twin without W&B.

Run sets, bars and scatter plots are drawn by W&B from the cells' runs (`paft.tracking.run.log_cell`); the table of the
paper's shape, the lambda x merge table and the claims are text, as means over seeds and intervals are not in any run.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paft.config import Wandb
from paft.files.jsonfile import read_object, write_json
from paft.private import specification
from paft.report.build import Study, studies
from paft.report.columns import Column, score_columns
from paft.report.findings import flat
from paft.report.names import merge_title, objective_title
from paft.report.numbers import DASH, short
from paft.report.render import markdown
from paft.report.representatives import representatives
from paft.report.row import Row
from paft.report.scope import SECTIONS, title
from paft.report.study_plots import PARETO
from paft.report.table import require_rows
from paft.report.tables import Head, cells_table, claims_table, plain_table
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
    model = specification(report)
    spec = json.loads(model.spec.model_dump_json(by_alias=True, exclude_none=True))
    return {
        "displayName": report.title,
        "projectName": report.project,
        "entityName": report.entity,
        "spec": spec,
    }


def build(shown: Sequence[Study], *, project: str, entity: str) -> "wr.Report":
    """The report over these studies; nothing is sent or asked."""
    from wandb_workspaces.reports import v2 as wr

    blocks: list[Any] = [wr.TableOfContents()]
    for study in shown:
        scope, columns = study.scope, score_columns(study.cells)
        blocks += [
            wr.H1(title(scope, study.cells)),
            wr.P(f"Trained on {scope.data or 'nothing'}; scores are means over seeds, ± one standard error."),
            wr.H2("Every cell, as in the paper's Table 1"),
            wr.MarkdownBlock(markdown(cells_table(study.cells))),
            wr.H2("Average by lambda and merge"),
            wr.MarkdownBlock(lambda_by_merge(study.cells, columns)),
            wr.H2("The paper's claims on these cells"),
            wr.MarkdownBlock(markdown(claims_table([*map(flat, study.findings)]))),
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

    sets = []
    for paradigm in SECTIONS:
        keys = [k for r in study.cells if r.paradigm == paradigm for k in r.evaluate_keys]
        if keys:
            sets.append(wr.Runset(name=paradigm, filters=f"Config('evaluate_key') in {keys}"))
    return sets


def _panels(cells: Sequence[Row], columns: Sequence[Column]) -> list[Any]:
    from wandb_workspaces.reports import v2 as wr

    names = {c.name for c in columns}
    half, metric = wr.Layout(w=12, h=10), wr.SummaryMetric
    panels: list[Any] = [
        wr.BarPlot(title=c.title, metrics=[metric(c.name)], orientation="h", layout=half) for c in columns
    ]
    for branch in ("sft", "preference"):
        title = f"Share of the {branch} delta below 1e-5 (figure 2)"
        panels.append(wr.BarPlot(title=title, metrics=[metric(f"{branch}_sparsity")], layout=half))
    for skill, other, kept in (triple for triple in PARETO if set(triple) <= names):
        for x, y in ((kept, skill), (kept, other), (skill, other)):
            panels.append(wr.ScatterPlot(title=f"{y} against {x}", x=metric(x), y=metric(y), layout=half))
    axes: list[Any] = [wr.Config("lambda"), wr.Config("merge"), *(metric(c.name) for c in columns)]
    lines = [wr.ParallelCoordinatesPlotColumn(metric=m) for m in axes]
    panels.append(
        wr.ParallelCoordinatesPlot(title="Options and scores", columns=lines, layout=wr.Layout(w=24, h=10))
    )
    return panels


# --- text --------------------------------------------------------------------------------------------


def lambda_by_merge(cells: Sequence[Row], columns: Sequence[Column]) -> str:
    """The numbers of the heat map: a row for each objective and merge method, a column for each lambda."""
    merged = [r for r in representatives(cells) if r.merged]
    average = next((c for c in columns if c.name == "average"), None)
    if not merged or average is None:
        return "No merged cells."
    weights = sorted({r.weight or 0.0 for r in merged})
    places = {(r.preference, r.merge, r.weight or 0.0): average.written(r) for r in merged}
    lines = [
        [f"{merge_title(m)} {objective_title(p)}", *(places.get((p, m, w), DASH) for w in weights)]
        for p, m in dict.fromkeys((r.preference, r.merge) for r in merged)
    ]
    head = [Head("merge", numeric=False), *(Head(f"λ={short(w)}") for w in weights)]
    return markdown(plain_table(head, lines))
