"""The same grid through Ray and joblib: several processes of one machine, and of one store."""

import importlib.util

import pytest
from grid import GRID, assert_branches_overlap, assert_each_stage_once, meeting, train

pytestmark = pytest.mark.slow

LAUNCHERS = {
    "ray": ("hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2"),
    "joblib": ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
}


@pytest.mark.parametrize("launcher", ["ray", pytest.param("joblib", marks=pytest.mark.exhaustive)])
def test_grid_makes_each_stage_once(tmp_path, launcher):
    if importlib.util.find_spec(f"hydra_plugins.hydra_{launcher}_launcher") is None:
        pytest.skip(f"pip install -e '.[cluster]' brings the {launcher} launcher")
    done = train(tmp_path / "logs", *GRID, *LAUNCHERS[launcher], meeting(tmp_path / "met", 2))

    assert done.returncode == 0, done.stderr
    assert_each_stage_once(tmp_path / "logs")
    assert_branches_overlap(tmp_path / "logs")
