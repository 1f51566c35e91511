"""One W&B run for each cell: its scores, tables and pictures, and the adapters it came from."""

import json
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paft.config import Wandb
from paft.evaluate.results import Results
from paft.files.jsonfile import write_json
from paft.graph.stage import Stage
from paft.report.row import Row
from paft.report.table import row
from paft.store.context import Context
from paft.tracking.branch import branch_id
from paft.tracking.run import mode, start, survive

if TYPE_CHECKING:
    from wandb import Run


def cell_id(cell: Stage) -> str:
    return f"cell-{cell.key}"


def log_cell(cell: Stage, context: Context) -> None:
    """One run per cell: configuration, scores, tables, pictures, and the adapters it came from.

    Logged once per group and mode: a marker in `<logs>/wandb` tells.
    """
    settings = context.running.logger
    if not isinstance(settings, Wandb):
        return
    marker = (
        Path(context.running.logs) / "wandb" / f"{cell_id(cell)}.{settings.project}.{settings.group}.json"
    )

    def act() -> None:
        if marker.exists() and json.loads(marker.read_text())["mode"] == mode(settings):
            return
        summary = row(context.store.path(cell))
        name = " ".join(
            str(summary[k])
            for k in ("base", "paradigm", "merge", "lambda")
            if summary.get(k) not in (None, "")
        )
        lineage = {s.name if s.name != "data" else f"data_{s.config.branch}": s.key for s in cell.walk()}
        run = start(cell_id(cell), name, "cell", dict(summary | {"lineage": lineage}), context)
        if run is None:
            return
        _log_results(run, cell, context, summary)
        _use_adapters(run, cell, mode(settings))
        run.finish()
        write_json(marker, {"mode": mode(settings), "id": cell_id(cell)})

    survive(f"logging {cell_id(cell)}", act)


def _log_results(run: "Run", cell: Stage, context: Context, summary: Row) -> None:
    import wandb
    from PIL import Image

    from paft.report.pictures import figures, png

    results = Results.read(context.store.path(cell))
    columns: list[str | int] = ["task", "score", "stderr", "metric", "num_items"]
    data: list[Iterable[Any]] = [
        [name, t.score, t.stderr, t.metric, t.num_items] for name, t in results.tasks.items()
    ]
    drawn = figures(context.store.root, [summary])
    scores: dict[str, float | None] = {f"score/{name}": task.score for name, task in results.tasks.items()}
    scores["score/average"] = results.average
    # as the page has them: of a figure W&B would want pyplot
    pictures = {name: wandb.Image(Image.open(BytesIO(png(figure)))) for name, figure in drawn}
    run.log({"results": wandb.Table(columns=columns, data=data)} | pictures | scores)
    run.summary.update({k: v for k, v in summary.items() if isinstance(v, int | float | str)})


def _use_adapters(run: "Run", cell: Stage, how: str) -> None:
    """W&B's own lineage graph; offline the keys in the run's `lineage` config say the same."""
    if how != "online":
        return
    for stage in cell.walk():
        if stage.kind.trains:
            survive(f"linking {branch_id(stage)}", lambda s=stage: run.use_artifact(f"{branch_id(s)}:latest"))  # type: ignore[misc]
