"""Where a stage runs that forwards pairs or trains: here on one device, or as a child of its own on several.

Lightning starts extra ranks by running the script again, which inside a Hydra multirun means running the
whole grid again. So several devices get a `torchrun` child that knows one stage and nothing of Hydra.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from paft.config import RunConfig, decode
from paft.graph import build
from paft.run import Context
from paft.stage import Stage, Store, canonical, write_json

JOB, METRICS = "job.json", "metrics.json"


def on_devices(stage: Stage, inputs: dict[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Run the stage into `out` on `trainer.devices`; returns its metrics, those of rank 0 on several devices.

    Raises `RuntimeError` with the exit code if a rank of a multi-device run fails; its traceback is on stderr.
    """
    settings = context.config.trainer
    if settings.num_nodes > 1:
        raise ValueError(
            f"trainer.num_nodes={settings.num_nodes}: several nodes are not launched from here yet; set it to 1"
        )
    if settings.devices > 1:
        return _in_child(stage, inputs, out, context)
    return _work(stage, inputs, out, context)


def _work(stage: Stage, inputs: dict[str, Path], out: Path, context: Context) -> dict[str, Any]:
    if stage.name == "reference":
        from paft.training.reference import score

        return score(stage, inputs, out, context)
    from paft.training.fit import fit

    return fit(stage, inputs, out, context)


def _in_child(stage: Stage, inputs: dict[str, Path], out: Path, context: Context) -> dict[str, Any]:
    job = {
        "key": stage.key,
        "config": canonical(context.config, whole=True),
        "inputs": {name: str(folder) for name, folder in inputs.items()},
    }
    write_json(out / JOB, job)
    ranks = f"--nproc-per-node={context.config.trainer.devices}"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        ranks,
        "-m",
        __name__,
        str(out / JOB),
    ]
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise RuntimeError(
            f"{stage} on {context.config.trainer.devices} devices failed: exit {done.returncode}"
        )
    metrics: dict[str, Any] = json.loads((out / METRICS).read_text())
    for name in (JOB, METRICS):
        (out / name).unlink()
    return metrics


def main(job_path: Path) -> None:
    """One rank of a child: rebuild the stage from the job file and run it."""
    job = json.loads(job_path.read_text())
    config = decode(job["config"])
    assert isinstance(config, RunConfig)
    cell = build(config)
    (stage,) = (s for s in cell.walk() if s.key == job["key"])
    inputs = {name: Path(folder) for name, folder in job["inputs"].items()}
    metrics = _work(stage, inputs, job_path.parent, Context(config, Store(config.store), cell))
    if os.environ.get("RANK", "0") == "0":
        write_json(job_path.parent / METRICS, metrics)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
