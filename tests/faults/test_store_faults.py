"""What happens to a store from outside: damage, clocks that are wrong, owners of locks that die, other networks."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import psutil
import pytest
from processes import Run, assert_same_results, finished, scatter_dates, start

pytestmark = pytest.mark.slow

CELL = ("lambda=1e-4", "merge=ties")


@pytest.fixture(scope="module")
def cell(smoke_grid, tmp_path_factory) -> Path:
    """The store of a cell of the grid, made from it by one run that finds everything but its evaluation."""
    logs = tmp_path_factory.mktemp("cell")
    shutil.copytree(smoke_grid.store, logs / "stages")
    run = start(*CELL, logs=logs).succeed()
    hits = re.findall(r"^(\w+) +(\w{16})  hit", run.said, re.MULTILINE)
    assert len(hits) == 7
    for folder in (logs / "stages").glob("*/*"):
        if (folder.parent.name, folder.name) not in hits:
            shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
    return logs / "stages"


def ran(*runs: Run) -> list[str]:
    """The stages that were run, by name."""
    return sorted(
        name for run in runs for name in re.findall(r"^(\w+) +\w{16}  run ", run.said, re.MULTILINE)
    )


def only(store: Path, stage: str) -> Path:
    (folder,) = (p for p in (store / stage).glob("*") if p.is_dir() and "." not in p.name)
    return folder


def test_damaged_and_half_deleted_stages_are_named_and_built_again(cell, smoke_grid, tmp_path):
    store = Path(shutil.copytree(cell, tmp_path / "stages"))
    adapter = only(store, "sft") / "adapter" / "adapter_model.safetensors"
    with adapter.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(b"\x55" * 8)
    (only(store, "merge") / "model.safetensors").unlink()
    (only(store, "evaluate") / "stage.json").unlink()
    shutil.rmtree(only(store, "preference"))

    run = start(*CELL, logs=tmp_path).succeed()

    assert "adapter/adapter_model.safetensors does not have its recorded sha256" in run.said
    assert "model.safetensors is missing" in run.said
    assert "has no stage.json: moved to" in run.said
    assert ran(run) == ["evaluate", "merge", "preference", "sft"]
    aside = list(store.glob("*/*.damaged-1"))
    assert {p.parent.name for p in aside} == {"sft", "merge", "evaluate"}
    for folder in aside:
        shutil.rmtree(folder)
    assert_same_results(store, smoke_grid.store)


@pytest.mark.exhaustive  # the runs killed in every phase live among such dates too
def test_wrong_clocks_change_nothing(cell, smoke_grid, tmp_path):
    """A store some of whose files come from a machine that lives in 2100, others from one that lives in 1990."""
    store = Path(shutil.copytree(cell, tmp_path / "stages"))
    for stage in ("sft", "merge", "evaluate"):
        shutil.rmtree(only(store, stage))
    scatter_dates(store)
    before = finished(store)
    clock = ("faketime", "1995-05-05") if shutil.which("faketime") else ()

    run = start(*CELL, logs=tmp_path, under=clock).succeed()

    assert ran(run) == ["evaluate", "merge", "sft"]
    assert before.items() <= finished(store).items()
    assert_same_results(store, smoke_grid.store)


def in_own_network() -> tuple[str, ...]:
    words = ("unshare", "--net")
    if (
        os.geteuid()
        or not shutil.which("unshare")
        or subprocess.run([*words, "true"], capture_output=True).returncode
    ):
        pytest.skip("needs root and the right to make network namespaces")
    return words


def test_two_runs_in_two_networks_share_the_work_and_one_outlives_the_other(cell, smoke_grid, tmp_path):
    """Neither can reach the other but through the folder: locks are the kernel's, and go when their owner dies."""
    under = in_own_network()
    (tmp_path / "stages").mkdir()
    for name in ("data", "reference"):
        shutil.copytree(cell / name, tmp_path / "stages" / name)
    for stage in ("sft", "preference", "merge", "evaluate"):  # left over from a machine that is gone
        lock = tmp_path / "stages" / stage / f"{only(cell, stage).name}.lock"
        lock.parent.mkdir()
        lock.write_text("4242\nanother-host\n")
    holder = start(*CELL, logs=tmp_path, under=under, crash="open *.partial/work/history.jsonl stop")
    holder.until(lambda: psutil.Process(holder.process.pid).status() == psutil.STATUS_STOPPED)
    other = start(*CELL, logs=tmp_path, under=under)
    networks = {os.readlink(f"/proc/{run.process.pid}/ns/net") for run in (holder, other)}
    other.until(lambda: "waiting for" in other.said)

    holder.kill()
    other.succeed()

    assert len(networks) == 2
    assert len(ran(holder, other)) == 4 and set(ran(holder, other)) == {
        "sft",
        "preference",
        "merge",
        "evaluate",
    }
    assert_same_results(tmp_path / "stages", smoke_grid.store)
