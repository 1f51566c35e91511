"""A run that is killed again and again ends with the bytes of the run that was never killed."""

import random
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from processes import Run, assert_same_results, finished, scatter_dates, start

pytestmark = pytest.mark.slow

CELL = ("lambda=1e-4", "merge=ties", "trainer.checkpoint_every=2")
"""A cell of the grid in `smoke_grid`, whose checkpoints are further apart."""

PHASES = {
    "tokenised rows not yet recorded": "os.rename */data/*/stage.json half",
    "a checkpoint half written": "os.rename */work/step=4.ckpt half",
    "a merged model half written": "os.rename */merge/*/model.safetensors half",
    "scores written, samples not": "open */evaluate/*/samples.jsonl",
    "whole but for its name": "os.rename */evaluate/????????????????",
    "scores published, the branch they are of not": "os.rename */*/????????????????.partial/stage.json half",
}


def killed(run: Run) -> Run:
    assert run.wait() == -signal.SIGKILL, f"it was to be killed on its way:\n{run.said[-3000:]}"
    return run


def kept(before: dict[Path, int], store: Path) -> dict[Path, int]:
    """What is finished now; all that was so before still is, and was not built again."""
    now = finished(store)
    assert before.items() <= now.items()
    return now


def test_killed_in_every_phase_one_after_the_other(smoke_grid, tmp_path):
    store, done = tmp_path / "stages", dict[Path, int]()
    for phase, crash in PHASES.items():
        killed(start(*CELL, logs=tmp_path, crash=crash))
        kept(done, store)
        scatter_dates(store)  # the next machine's clock is another
        done = finished(store)
        print(f"killed: {phase}; finished: {sorted(p.parent.name for p in done)}")

    last = start(*CELL, logs=tmp_path).succeed()

    kept(done, store)
    assert_same_results(store, smoke_grid.store)
    assert "damaged" not in last.said


GRID = ("-m", "lambda=1e-4,1e-3", "merge=ties,dare", "trainer.checkpoint_every=2")


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(4))
def test_grid_killed_at_six_random_moments(smoke_grid, tmp_path, seed):
    """At the n-th change of a file, which repeats exactly, and after some seconds, in whatever is then done."""
    moments = random.Random(seed)
    store, done, kills = tmp_path / "stages", dict[Path, int](), 0
    while kills < 6:
        change, seconds = moments.randrange(1, 60), moments.uniform(3, 12)
        by_change = moments.random() < 0.5
        run = start(*GRID, logs=tmp_path, crash=f"{change} {store}" if by_change else "")
        if not by_change:
            with suppress(subprocess.TimeoutExpired):
                run.process.wait(seconds)
            run.kill()
        ended = run.wait()
        assert ended in (0, -signal.SIGKILL), run.said[-3000:]
        kills += ended != 0
        print(f"kill {kills}: " + (f"change {change}" if by_change else f"{seconds:.1f} s"))
        done = kept(done, store)
        if ended == 0:  # it was quicker: once more from the start
            assert_same_results(store, smoke_grid.store)
            shutil.rmtree(store)
            done = {}

    start(*GRID, logs=tmp_path).succeed()

    kept(done, store)
    assert_same_results(store, smoke_grid.store)
    assert len(finished(store)) == len(finished(smoke_grid.store))
