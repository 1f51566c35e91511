"""Where the cells of a grid are started, checked before the first of them is: what a launcher needs of this machine."""

import shutil
from importlib.util import find_spec

from omegaconf import DictConfig

BASIC, SLURM = "BasicLauncher", "SlurmLauncher"


def require_launcher(launcher: DictConfig) -> None:
    """Raise `ValueError` for a launcher whose package, or whose cluster, is not here."""
    target = str(launcher._target_)
    package = ".".join(target.split(".")[:2])
    if find_spec(package) is None:
        raise ValueError(
            f"the launcher {target.rpartition('.')[2]} needs the package {package}; "
            "run: pip install 'paft[cluster]', or leave hydra/launcher out to run the cells here"
        )
    if target.endswith(SLURM) and shutil.which("sbatch") is None:
        raise ValueError(
            "hydra/launcher=slurm needs SLURM's sbatch, which is not on this machine; give the command on a login node "
            "of the cluster, or leave hydra/launcher out to run the cells here"
        )


def refuse_single_run(launcher: DictConfig) -> None:
    """Raise `ValueError` for one cell with a launcher: it would run here, not where the launcher says."""
    name = str(launcher._target_).rpartition(".")[2]
    if name != BASIC:
        raise ValueError(
            f"hydra/launcher (here {name}) starts the cells of a grid, and this is one cell, which runs here; "
            "add -m, or leave hydra/launcher out"
        )


def refused_jobs(error: BaseException) -> str | None:
    """What SLURM says of jobs it did not take, as of a partition there is none of; None for any other error."""
    if type(error).__name__ != "FailedJobError":  # submitit's, which is imported only where it launches
        return None
    said = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
    return f"SLURM took no job: {said}; partition, account and time are settings of hydra.launcher (docs/cluster.md)"
