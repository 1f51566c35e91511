"""What the launchers' files ask a cluster for follows from the trainer."""

from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from paft.command.compose import register_schemas
from paft.process.slurm import require_nodes

# its file has the plugin's name on purpose
pytestmark = pytest.mark.filterwarnings(r"ignore:\s*'hydra/launcher/ray' is validated:UserWarning")
CONF = Path(__file__).parents[2] / "conf"


def launcher(*overrides: str) -> dict[str, Any]:
    register_schemas()
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        composed = hydra.compose("train", overrides=list(overrides), return_hydra_config=True)
        composed.hydra.sweep.dir = "sweep"
        found = OmegaConf.to_container(composed.hydra.launcher, resolve=True)
    assert isinstance(found, dict)
    return found


def test_slurm_asks_for_the_nodes_and_gpus_of_the_trainer_an_experiment_chose():
    asked = launcher("experiment=zephyr_mistral_7b", "trainer.num_nodes=4", "hydra/launcher=slurm")
    assert asked["gpus_per_node"] == 8
    assert asked["additional_parameters"] == {"nodes": 4, "requeue": True}
    assert (asked["nodes"], asked["tasks_per_node"]) == (1, 1)  # one process runs the cell


def test_slurm_asks_for_no_gpu_where_the_trainer_uses_none():
    assert launcher("hydra/launcher=slurm")["gpus_per_node"] == 0


def test_ray_asks_for_the_devices_of_the_trainer():
    on_gpus = launcher("trainer=a100x8", "strategy=fsdp", "hydra/launcher=ray")["ray"]["remote"]
    on_cpus = launcher("trainer.devices=2", "strategy=ddp", "hydra/launcher=ray")["ray"]["remote"]
    assert on_gpus == {"num_cpus": 8, "num_gpus": 8}
    assert on_cpus == {"num_cpus": 2, "num_gpus": 0}


def test_nodes_a_slurm_job_does_not_have_are_refused(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    require_nodes(2)
    with pytest.raises(ValueError, match=r"trainer.num_nodes=3 .* this SLURM job has 2; set it to 1"):
        require_nodes(3)
