"""W&B out of reach, and W&B's own process dying in the middle: the training and the store do not notice."""

import pytest
from conftest import FAKE_KEY
from processes import assert_same_training, children, start
from wandb_file import read_runs

pytestmark = pytest.mark.slow

SFT = ("lambda=1e-4", "paradigm=sft", "logger=wandb")


def test_unreachable_then_its_process_dies(smoke_grid, tmp_path):
    nobody = {"WANDB_MODE": "online", "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": FAKE_KEY}
    run = start(*SFT, logs=tmp_path, WANDB_INIT_TIMEOUT="1", **nobody)
    run.until(lambda: "loss=" in run.said)
    dead = [child for child in children(run) if "wandb" in child.name()]
    for child in dead:
        child.kill()
    run.succeed()

    assert dead
    assert run.said.count("W&B: offline from here on; upload with: wandb sync") >= 1
    assert run.said.count("online failed, going on without it") == 1
    assert "Traceback" not in run.said
    assert_same_training(tmp_path / "stages", smoke_grid.store, "sft")
    (cell,) = (r for r in read_runs(tmp_path) if r.job_type == "cell")
    assert cell.exited and "score/average" in cell.summary
