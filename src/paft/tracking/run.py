"""Weights & Biases: one run per trained branch, one per cell, ids from stage keys, never a crash.

An id names the work, so re-running resumes the same run instead of adding another. Without a key everything
is written offline and can be uploaded later with `wandb sync`.
"""

import logging
import netrc
import os
import shlex
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from paft.config import Wandb, WandbMode
from paft.store.context import Context

if TYPE_CHECKING:
    from wandb import Run, Settings

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
    settings = context.running.logger
    if not isinstance(settings, Wandb):
        return None
    unset_empty()
    import wandb

    folder = Path(context.running.logs)
    folder.mkdir(parents=True, exist_ok=True)

    def open_as(how: str) -> "Run":
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
            settings=_patience(),
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


def _patience() -> "Settings":
    """W&B is quiet, and waits for its server for seconds, not for as long as the network is away."""
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",
        init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT", INIT_SECONDS)),
        finish_timeout=FINISH_SECONDS,
        finish_timeout_raises=True,
    )


def upload_command(folder: Path) -> str:
    """What uploads the runs that were written offline below `folder`, in a shell."""
    return f"wandb sync {shlex.quote(str(folder))}/wandb/offline-run-*"
