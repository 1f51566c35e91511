"""Several gloo processes on this machine, each in the environment `torchrun` would give it.

They are forked from a server that has imported torch once, so that a group of four costs less than a second.
"""

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning_utilities.core.rank_zero import rank_zero_only
from resumable import configured, stage_of
from safetensors.torch import load_file
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from paft.command.devices import main, write_job
from paft.config import RunConfig
from paft.files.jsonfile import read_object


def spawn(work: Callable[..., None], *args: Any, world: int, nodes: int = 1, seconds: float = 240) -> None:
    """`work(*args)` in `world` ranks on `nodes` pretended nodes; the first rank's failure is raised here."""
    port, deadline = free_port(), time.monotonic() + seconds
    # a fork of the process that tests/forked.py has asked to import everything
    group = start_processes(
        _rank, (work, args, world, world // nodes, port), nprocs=world, join=False, start_method="forkserver"
    )
    try:
        while not group.join(timeout=1):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{work.__name__} did not end in {seconds} s on {world} ranks")
    finally:
        for process in group.processes:
            process.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _rank(
    rank: int, work: Callable[..., None], args: tuple[Any, ...], world: int, per_node: int, port: int
) -> None:
    numbers = {"RANK": rank, "LOCAL_RANK": rank % per_node, "GROUP_RANK": rank // per_node}
    numbers |= {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": per_node, "MASTER_PORT": port}
    os.environ.update({name: str(number) for name, number in numbers.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", TORCHELASTIC_RUN_ID="test")
    torch.set_num_threads(1)
    rank_zero_only.rank = rank  # read from RANK when it was imported, which was in the server
    try:
        work(*args)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def train(
    logs: Path, out: Path, branch: str, *overrides: str, world: int = 1, nodes: int = 1, probe: str = ""
) -> Path:
    """Train the branch into `out` as the ranks of a launched stage do, each with a `Probe`; returns `out`.

    Runs that share `logs` read the same rows. `probe` holds the probe's settings, as `, name: value`.
    """
    config = configured(
        logs,
        f"trainer.devices={world // nodes}",
        f"trainer.num_nodes={nodes}",
        "+callbacks.probe={_target_: probe.Probe" + probe + "}",
        *overrides,
    )
    spawn(main, job_of(config, branch, out), world=world, nodes=nodes)
    return out


def adapter_of(out: Path) -> dict[str, Tensor]:
    return load_file(out / "adapter" / "adapter_model.safetensors")


def seen_by(out: Path, world: int) -> list[dict[str, Any]]:
    """What each rank's `Probe` wrote."""
    return [read_object(out / f"rank{rank}.json") for rank in range(world)]


def job_of(config: RunConfig, branch: str, out: Path) -> Path:
    stage, context = stage_of(config, branch)
    out.mkdir(parents=True, exist_ok=True)
    return write_job(stage, {name: context.store.path(s) for name, s in stage.inputs.items()}, out, config)
