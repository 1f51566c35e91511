"""What every test runs under: one thread, no network, no W&B server; and a smoke grid to read."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is first imported; subprocesses inherit it
os.environ["GOMP_SPINCOUNT"] = "1000"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import forked
import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hypothesis import HealthCheck, settings

from paft import device
from paft.command.compose import register_schemas, to_config
from paft.config import RunConfig

# `quick` always tries the same few examples; `full` (make test-all) tries new ones each time it runs. A case takes as
# long as the machine is busy, so none has a deadline.
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
settings.register_profile(
    "quick", max_examples=30, derandomize=True, deadline=None, suppress_health_check=SLOW
)
settings.register_profile(
    "full", max_examples=1000, deadline=None, suppress_health_check=SLOW, print_blob=True
)
settings.load_profile("quick")

ROOT = Path(__file__).parents[1]
TIMEOUT = 300.0
GRID = ("experiment=smoke", "-m", "lambda=1e-4,1e-3", "merge=ties,dare", "logger=wandb")
FAKE_KEY = "0123456789abcdef0123456789abcdef01234567"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The whole of a cross product is for make test-all; a choice from it runs in every test."""
    if settings.get_current_profile_name() == "full":
        return
    left_out = [item for item in items if item.get_closest_marker("exhaustive")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def bfloat16_in_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bfloat16 is tested as such on every processor, slow as it may be; `test_computed_in.py` tells of both kinds."""
    monkeypatch.setattr(device, "multiplies_bfloat16", lambda: True)


def train(*overrides: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """`python train.py <overrides>` in its own process, from `cwd`."""
    script = ROOT / "train.py"
    if forked.can_fork(overrides, env):
        return forked.run(script, overrides, cwd, os.environ | env, TIMEOUT)
    command = [sys.executable, str(script), *overrides]
    return subprocess.run(
        command, cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=TIMEOUT
    )


@pytest.fixture(scope="session")
def run_printed() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command as the program or its documentation prints it: in a shell, with `python` this one."""

    def run(command: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        line = command.replace("python train.py", f"python {ROOT / 'train.py'}")
        settings = os.environ | {"PATH": path} | env
        return subprocess.run(
            line, shell=True, cwd=cwd, env=settings, capture_output=True, text=True, timeout=300
        )

    return run


@dataclass
class Grid:
    """The folder a grid ran in, and what its process said."""

    logs: Path
    done: subprocess.CompletedProcess[str]
    seconds: float
    store: Path = field(init=False)

    def __post_init__(self) -> None:
        self.store = self.logs / "stages"

    def stage_files(self) -> dict[Path, int]:
        """stage.json of every finished stage -> time of its last change."""
        return {p: p.stat().st_mtime_ns for p in sorted(self.store.glob("*/*/stage.json"))}

    def wandb_runs(self) -> list[Path]:
        return sorted((self.logs / "wandb").glob("offline-run-*"))


def run_grid(logs: Path) -> Grid:
    started = time.time()
    done = train(*GRID, f"logs={logs}", cwd=logs.parent, WANDB_API_KEY=FAKE_KEY)
    return Grid(logs, done, time.time() - started)


@pytest.fixture(scope="session")
def smoke_grid(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    """Two lambdas, TIES and DARE, on the tiny model, run once; tests only add to its store."""
    return run_grid(tmp_path_factory.mktemp("grid") / "logs")


@pytest.fixture(scope="session")
def smoke_grid_again(smoke_grid: Grid) -> tuple[Grid, bool, bool]:
    """The same command once more; whether it touched any stage, and whether it logged any run."""
    stages, runs = smoke_grid.stage_files(), smoke_grid.wandb_runs()
    again = run_grid(smoke_grid.logs)
    return again, again.stage_files() != stages, again.wandb_runs() != runs


@pytest.fixture(scope="session")
def compose() -> Callable[..., RunConfig]:
    """Overrides as on the command line -> the typed config."""
    register_schemas()

    def composed(*overrides: str) -> RunConfig:
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return to_config(hydra.compose("train", overrides=list(overrides)))

    return composed
