"""The store of finished stages; importing this module loads no torch.

`<store>/<stage>/<key>/stage.json` exists exactly when that folder is complete: work happens in `<key>.partial` under
`<key>.lock`, stage.json is written last, and one rename publishes it. Wherever a process dies, the next one goes on
from what it left. No step compares times of day.
"""

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import Timeout

from paft.files.diskfull import naming_full_disk
from paft.files.jsonfile import read_object, write_json
from paft.files.replacing import PARTIAL, UNFINISHED
from paft.files.unwritable import naming_unwritable
from paft.graph.stage import Stage
from paft.store.damage import WORK, digests, find_damage
from paft.store.places import free_name, lock, move_aside, own_folder
from paft.store.provenance import provenance

log = logging.getLogger("paft")

Run = Callable[[Stage, dict[str, Path], Path], dict[str, Any]]
"""(stage, finished input folders, folder to fill) -> metrics for stage.json."""
Help = Callable[[Stage, dict[str, Path], Path], None]
"""The same of a stage that another process holds, whose folder is not this one's to fill: see `paft.files.journal`."""


class Store:
    """Finished stages on disk; safe for any number of processes.

    `verify=False` trusts stage.json without reading the outputs again: enough to plan, not to run.
    """

    def __init__(self, root: str | Path, *, verify: bool = True) -> None:
        self.root = Path(root)
        self.verify = verify
        self._verified: set[str] = set()
        self._lent: dict[str, Path] = {}

    def path(self, stage: Stage) -> Path:
        return self._lent.get(stage.key) or self.root / stage.name / stage.key

    def complete(self, stage: Stage) -> bool:
        return stage.key in self._lent or (self.path(stage) / "stage.json").is_file()

    @contextmanager
    def lend(self, stage: Stage, folder: Path) -> Iterator[None]:
        """Inside, this process takes `folder` for the finished `stage`: its outputs are there, unpublished yet."""
        self._lent[stage.key] = folder
        try:
            yield
        finally:
            del self._lent[stage.key]

    def record(self, stage: Stage) -> dict[str, Any]:
        """The stage.json of a finished stage. Raises `ValueError` naming it if it is absent or damaged."""
        return read_object(self.path(stage) / "stage.json")

    def sound(self, stage: Stage) -> bool:
        """True if the stage is complete and every output still has its recorded sha256.

        Checked once per process. A damaged folder is reported and moved aside, so that it is rebuilt and
        never silently used.
        """
        if not self.complete(stage):
            return False
        if self.verify and stage.key not in self._verified | self._lent.keys():
            if find_damage(self.path(stage)):
                self._move_aside(stage)
                return False
            self._verified.add(stage.key)
        return True

    def _move_aside(self, stage: Stage) -> None:
        """Under the lock, as another process may have done so, and even rebuilt it, since this one looked."""
        path = self.path(stage)
        try:
            with naming_unwritable(f"a sound {stage}", self.root), lock(path):
                damage = self.complete(stage) and find_damage(path)
                if damage:
                    aside = move_aside(path)
                    log.warning("%s is damaged (%s): moved to %s, building it again", stage, damage, aside)
        except Timeout:
            pass  # its holder is building it again

    def missing(self, target: Stage) -> list[Stage]:
        """What must run before `target` is there, inputs first.

        Inputs of finished stages do not matter, unless one was begun: a branch that scores its own merged model
        is published after the scores, and may have been killed between.
        """
        done = self.sound(target)
        wanted = self._begun(target) if done else target.inputs.values()
        needed = {s.key: s for stage in wanted for s in self.missing(stage)}
        return [*needed.values()] if done else [*needed.values(), target]

    def _begun(self, target: Stage) -> list[Stage]:
        unfinished = (s for s in target.walk() if not self.complete(s))
        return [s for s in unfinished if Path(f"{self.path(s)}{PARTIAL}").is_dir()]

    def ensure(self, target: Stage, run: Run, *, help: Help | None = None, poll_seconds: float = 0.5) -> Path:
        """The folder of `target`, running whatever is missing.

        Of several missing stages, one that no other process holds is taken, so that processes started
        together work on different branches; only when all are held does this `help` each of them, once, and wait.
        """
        self.ensure_all([target], run, help=help, poll_seconds=poll_seconds)
        return self.path(target)

    def ensure_all(
        self, targets: Sequence[Stage], run: Run, *, help: Help | None = None, poll_seconds: float = 0.5
    ) -> None:
        """Run whatever of several targets is missing."""
        waiting, helped = False, set[str]()
        while missing := list({s.key: s for target in targets for s in self.missing(target)}.values()):
            ready = [s for s in missing if all(self.sound(i) for i in s.inputs.values())]
            ready.sort(key=lambda s: len(s.inputs))  # data first: its errors come before any training
            if any(self._claim_and_run(stage, run) for stage in ready):
                waiting = False
                continue
            if not waiting:
                log.info("waiting for %s, held by another process", ", ".join(map(str, ready)))
            waiting = True
            if help is not None:
                for stage in [s for s in ready if s.key not in helped]:
                    helped.add(stage.key)
                    self._help(stage, help)
            time.sleep(poll_seconds)

    def _help(self, stage: Stage, help: Help) -> None:
        partial = Path(f"{self.path(stage)}{PARTIAL}")
        if partial.is_dir():
            help(stage, {name: self.path(s) for name, s in stage.inputs.items()}, partial)

    def _claim_and_run(self, stage: Stage, run: Run) -> bool:
        with naming_unwritable(str(stage), self.root), self.claim(stage) as partial:
            if partial is None:
                return False
            if self.complete(stage):  # finished by another process between the look and the lock
                return True
            started = time.monotonic()
            inputs = {name: self.path(s) for name, s in stage.inputs.items()}
            with naming_full_disk(str(stage), partial):
                metrics = run(stage, inputs, partial)
                seconds = time.monotonic() - started
                self._record(stage, partial, metrics, seconds)
            self._publish(stage, partial)
            log.info("%-12s %s  run  %7.1f s  %s", stage.name, stage.key, seconds, self.path(stage))
            return True

    @contextmanager
    def claim(self, stage: Stage) -> Iterator[Path | None]:
        """The stage's `.partial` folder under its lock, or None while another process holds it.

        What a killed run left in `.partial` is kept: training resumes from it, and a folder that was whole but for
        its name is published.
        """
        path = self.path(stage)
        partial = Path(f"{path}{PARTIAL}")
        with naming_full_disk(str(stage), partial):
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with lock(path):
                if not self.complete(stage):
                    if aside := move_aside(path):
                        log.warning("%s has no stage.json: moved to %s, building it again", stage, aside)
                    own_folder(partial)
                    if (partial / "stage.json").is_file() and not find_damage(partial):
                        self._publish(stage, partial)
                        log.info("%-12s %s  was whole but for its name", stage.name, stage.key)
                yield partial
        except Timeout:
            yield None

    def _record(self, stage: Stage, partial: Path, metrics: dict[str, Any], seconds: float) -> None:
        record = {
            "stage": stage.name,
            "key": stage.key,
            "identity": stage.identity,
            "inputs": {name: {"stage": s.name, "key": s.key} for name, s in stage.inputs.items()},
            "metrics": metrics,
            "outputs": digests(partial),
            "run": provenance() | {"seconds": round(seconds, 3)},
        }
        write_json(partial / "stage.json", record)

    def _publish(self, stage: Stage, partial: Path) -> None:
        """Give a whole folder its name. What a killed run would need goes only now that none will need it."""
        shutil.rmtree(partial / WORK, ignore_errors=True)
        for leftover in partial.rglob(f"*{UNFINISHED}"):
            if leftover.is_file():
                leftover.unlink()
        os.replace(partial, self.path(stage))
        self._verified.add(stage.key)

    def drop(self, stage: Stage) -> None:
        """Delete a finished stage, and what is left of one whose deletion was cut short.

        It loses its name first, so that it is never seen half deleted.
        """
        path = self.path(stage)
        if path.is_symlink():
            path.unlink()
        with suppress(FileNotFoundError):  # another process was quicker
            os.replace(path, free_name(path, "deleted"))
        for going in path.parent.glob(f"{path.name}.deleted-*"):
            shutil.rmtree(going, ignore_errors=True)
        self._verified.discard(stage.key)
