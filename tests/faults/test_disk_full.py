"""A disk that fills up: the message names the folder and what to do, and with room the run goes on."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import assert_same_results, finished, start

pytestmark = pytest.mark.slow

CELL = ("lambda=1e-4", "merge=ties", "trainer.checkpoint_every=2")
DISK = 64 * 2**20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "paft-test", str(folder)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs root and the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def leave(disk: Path, num_bytes: int) -> None:
    """Fill the disk up to so many bytes."""
    ballast = disk / "ballast"
    ballast.unlink(missing_ok=True)
    room = os.statvfs(disk)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - num_bytes)


def copy_stages(names: tuple[str, ...], source: Path, store: Path) -> None:
    for name in names:
        shutil.copytree(source / name, store / name, ignore=shutil.ignore_patterns("*.lock"))


def test_full_while_checkpointing_then_while_merging_then_gone_on_with(smoke_grid, disk, tmp_path):
    store = disk / "stages"
    copy_stages(("data", "reference", "preference"), smoke_grid.store, store)
    adapter = next(smoke_grid.store.glob("sft/*/adapter/*.safetensors")).stat().st_size
    # too little for a checkpoint; then, with the branch trained, too little for a merged model
    for given, stage, cannot in (((), "sft", "step=2.ckpt"), (("sft",), "merge", "model.safetensors")):
        (disk / "ballast").unlink(missing_ok=True)
        for name in given:
            shutil.rmtree(store / name)
        copy_stages(given, smoke_grid.store, store)
        leave(disk, adapter)
        before = finished(store)

        run = start(*CELL, f"store={store}", logs=tmp_path / "logs")

        assert run.wait() == 2, run.said[-3000:]
        (partial,) = store.glob(f"{stage}/*.partial")
        error = run.said[run.said.index("error: ") :]
        assert f"no space left for {stage} {partial.stem} in {partial} (" in error
        assert "make room there, or name a folder on another disk with store=..." in error
        assert "Traceback" not in run.said
        assert not list(partial.rglob(f"{cannot}*"))  # nor a part of it that takes room
        assert finished(store) == before

    (disk / "ballast").unlink()
    start(*CELL, f"store={store}", logs=tmp_path / "logs").succeed()
    assert_same_results(store, smoke_grid.store)


def test_full_while_a_training_merges_its_cell(smoke_grid, disk, tmp_path):
    """The trained branch is published, which frees its checkpoints, and what they took is room for the merge."""
    store = disk / "stages"
    copy_stages(("data", "reference", "preference"), smoke_grid.store, store)
    adapter = next(smoke_grid.store.glob("sft/*/adapter/*.safetensors")).stat().st_size
    checkpoint = 3 * adapter + 40_000
    leave(disk, 2 * checkpoint + 40_000)

    run = start(*CELL, f"store={store}", logs=tmp_path / "logs").succeed()

    assert "is trained, its merge or evaluation was refused: no space left for merge" in run.said
    assert_same_results(store, smoke_grid.store)
