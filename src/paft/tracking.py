"""Weights & Biases: one run per trained branch, one per cell, ids from stage keys, never a crash.

An id names the work, so re-running resumes the same run instead of adding another. Without a key everything
is written offline and can be uploaded later with `wandb sync`.
"""

import json
import logging
import netrc
import os
import shlex
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from paft.config import Wandb, WandbMode
from paft.graph import lambda_of
from paft.run import Context
from paft.stage import Stage, canonical
from paft.store.jsonfile import write_json

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger
    from wandb import Run

log = logging.getLogger("paft")
T = TypeVar("T")

INIT_SECONDS = 10
"""How long a run waits for W&B's server before it goes on offline, unless WANDB_INIT_TIMEOUT says otherwise."""
FINISH_SECONDS = 120
"""How long it waits for the rest of an upload at its end; by itself W&B waits for as long as the network is away."""


def survive(what: str, action: Callable[[], T]) -> T | None:
    """Run `action`; a failure of the tracker is reported and costs nothing else."""
    try:
        return action()
    except Exception as error:  # whatever W&B raises must not end a training run
        log.warning("W&B: %s failed, going on without it: %s: %s", what, type(error).__name__, error)
        return None


def let_go() -> None:
    """Forget W&B's runs and its own process, which may have died: what is left would fail at later imports.

    A failed attempt to open a run also holds the run's id until then.
    """
    import wandb

    with suppress(Exception, SystemExit):  # the latter for a process that died
        wandb.teardown()


def unset_empty() -> None:
    """An empty variable means an unset one, as shells and schedulers write it; W&B would refuse the value."""
    for name in [
        name for name, value in os.environ.items() if name.startswith("WANDB_") and not value.strip()
    ]:
        del os.environ[name]


def mode(config: Wandb) -> str:
    """`online` or `offline`: `auto` asks whether a key is configured, and WANDB_MODE has the last word."""
    forced = os.environ.get("WANDB_MODE")
    if forced in ("online", "offline", "disabled"):
        return forced
    if config.mode is not WandbMode.auto:
        return config.mode.value
    return "online" if _has_key() else "offline"


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = (os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").split("//")[-1].strip("/")
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def start(run_id: str, name: str, job_type: str, config: dict[str, Any], context: Context) -> "Run | None":
    """Open (or resume) the W&B run `run_id`; None if there is no W&B logger or it cannot be opened at all."""
    settings = context.config.logger
    if not isinstance(settings, Wandb):
        return None
    unset_empty()
    import wandb

    folder = Path(context.config.logs)
    folder.mkdir(parents=True, exist_ok=True)

    def open_as(how: str) -> "Run":
        ways = wandb.Settings(
            silent=True,
            console="off",
            init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT", INIT_SECONDS)),
            finish_timeout=FINISH_SECONDS,
            finish_timeout_raises=True,
        )
        return wandb.init(
            project=settings.project,
            entity=settings.entity,
            id=run_id,
            name=name,
            group=settings.group,
            job_type=job_type,
            tags=settings.tags,
            config=config,
            dir=str(folder),
            resume="allow",
            mode=how,  # type: ignore[arg-type]
            reinit="finish_previous",
            settings=ways,
        )

    wanted = mode(settings)
    run = survive(f"opening {run_id} {wanted}", lambda: open_as(wanted))
    if run is None:
        # for the rest of the process: each further try would wait as long
        os.environ["WANDB_MODE"] = "offline"
        let_go()
        run = survive(f"opening {run_id} offline", lambda: open_as("offline"))
        if run is not None:
            log.warning("W&B: offline from here on; upload with: %s", upload_command(folder))
    return run


def upload_command(folder: Path) -> str:
    """What uploads the runs that were written offline below `folder`, in a shell."""
    return f"wandb sync {shlex.quote(str(folder))}/wandb/offline-run-*"


def branch_id(stage: Stage) -> str:
    return f"{stage.name}-{stage.key}"


def cell_id(cell: Stage) -> str:
    return f"cell-{cell.key}"


def branch_logger(stage: Stage, context: Context) -> "Logger | None":
    """The Lightning logger of a branch's run; None on every rank but the first."""
    if os.environ.get("RANK", "0") != "0":
        return None
    from paft.training.tracked import TrackedRun

    config = {"stage": stage.name, "key": stage.key, **canonical(stage.config)}
    penalty = lambda_of(stage)
    name = (
        f"{stage.name} {stage.key[:6]}"
        if penalty is None
        else f"{stage.name} lambda={penalty:g} {stage.key[:6]}"
    )
    run = start(branch_id(stage), name, stage.name, config, context)
    return None if run is None else TrackedRun(run)


def finish_branch(stage: Stage, out: Path, metrics: dict[str, Any], context: Context) -> None:
    """Summary and adapter artifact of a branch's run, then close it."""
    if not isinstance(context.config.logger, Wandb):
        return
    import wandb

    def act() -> bool:
        run = wandb.run
        if run is None:
            return True
        run.summary.update(metrics)
        adapter = wandb.Artifact(
            branch_id(stage), type="adapter", metadata={"key": stage.key, "stage": stage.name}
        )
        adapter.add_dir(str(out / "adapter"))
        run.log_artifact(adapter)
        run.finish()
        return True

    if not survive(f"finishing the run of {stage}", act):
        let_go()


def log_cell(cell: Stage, context: Context) -> None:
    """One run per cell: configuration, scores, tables, pictures, and the adapters it came from.

    Logged once per group and mode: a marker in `<logs>/wandb` tells.
    """
    settings = context.config.logger
    if not isinstance(settings, Wandb):
        return
    marker = Path(context.config.logs) / "wandb" / f"{cell_id(cell)}.{settings.project}.{settings.group}.json"

    def act() -> None:
        if marker.exists() and json.loads(marker.read_text())["mode"] == mode(settings):
            return
        from paft.report.table import row

        summary = row(context.store.path(cell))
        name = " ".join(
            str(summary[k])
            for k in ("base", "paradigm", "merge", "lambda")
            if summary.get(k) not in (None, "")
        )
        lineage = {s.name if s.name != "data" else f"data_{s.config.branch}": s.key for s in cell.walk()}
        run = start(cell_id(cell), name, "cell", summary | {"lineage": lineage}, context)
        if run is None:
            return
        _log_results(run, cell, context, summary)
        _use_adapters(run, cell, mode(settings))
        run.finish()
        write_json(marker, {"mode": mode(settings), "id": cell_id(cell)})

    survive(f"logging {cell_id(cell)}", act)


def _log_results(run: "Run", cell: Stage, context: Context, summary: dict[str, Any]) -> None:
    import matplotlib.pyplot as plt
    import wandb

    from paft.report.build import figures

    results = json.loads((context.store.path(cell) / "results.json").read_text())
    columns: list[str | int] = ["task", "score", "stderr", "metric", "num_items"]
    data: list[Iterable[Any]] = [
        [name, *(task[str(c)] for c in columns[1:])] for name, task in results["tasks"].items()
    ]
    drawn = dict(figures(context.store.root, [summary]))
    scores = {f"score/{name}": task["score"] for name, task in results["tasks"].items()}
    scores["score/average"] = results["average"]
    table = wandb.Table(columns=columns, data=data)
    run.log({"results": table} | {name: wandb.Image(figure) for name, figure in drawn.items()} | scores)
    run.summary.update({k: v for k, v in summary.items() if isinstance(v, int | float | str)})
    for figure in drawn.values():
        plt.close(figure)


def _use_adapters(run: "Run", cell: Stage, how: str) -> None:
    """W&B's own lineage graph; offline the keys in the run's `lineage` config say the same."""
    if how != "online":
        return
    for stage in cell.walk():
        if stage.name in ("sft", "preference"):
            survive(f"linking {branch_id(stage)}", lambda s=stage: run.use_artifact(f"{branch_id(s)}:latest"))  # type: ignore[misc]
