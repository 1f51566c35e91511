"""The experiments of the study: what each of them is a union of, and that all of it composes."""

from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from hydra_plugins.paft_grids.grids import union
from paft.command.compose import register_schemas, to_config
from paft.graph.build import build, unique

CONF = Path(__file__).parents[1] / "conf"
FILES = {p.stem: OmegaConf.load(p) for p in sorted((CONF / "experiment/study").glob("*.yaml"))}
FOUND = {name: OmegaConf.select(file, "hydra.sweeper.grids") for name, file in FILES.items()}
GRIDS = {name: OmegaConf.to_container(grids) for name, grids in FOUND.items() if grids}
CELLS = {
    "rows": 1 + 9 + 3 + 6 + 12 + 90,
    "equal_lr": 12 + 24,
    "l1_of": 3 + 9 + 9 + 6,
    "proximal": 12 + 12,
    "target_sparsity": 9 + 9,
    "equal_norm": 60,
    "slerp_space": 12 + 6,
    "election": 24,
    "density": 30,
    "rounding": 12 + 6,
}


def cells(name: str, *words: str, only: str | None = None) -> list[list[str]]:
    grids = GRIDS[name] if only is None else {only: GRIDS[name][only]}
    return union(grids, OverridesParser.create().parse_overrides([f"experiment=study/{name}", *words]))


def test_every_experiment_of_the_study_has_a_number_of_cells_here():
    assert GRIDS.keys() == CELLS.keys()
    assert {name: len(cells(name)) for name in GRIDS} == CELLS


def test_the_command_line_goes_before_the_grids():
    found = cells("rows", "seed=7", "merge=ties")
    assert len(found) == 1 + 3 + 1 + 2 + 4 + 6
    assert all("seed=7" in words and "merge=ties" in words for words in found)


@pytest.mark.parametrize("name", GRIDS)
def test_last_cell_of_every_grid_composes(name):
    register_schemas()
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        for grid in GRIDS[name]:
            config = to_config(hydra.compose("train", overrides=cells(name, only=grid)[-1]))
            assert build(config).name == "evaluate"


def test_rows_train_no_branch_twice():
    register_schemas()
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        words = cells("rows", "seed=0", "merge=ties")
        targets = [build(to_config(hydra.compose("train", overrides=w))) for w in words]
    stages = [stage.name for stage in unique(targets)]
    counts = {name: stages.count(name) for name in ("sft", "reference", "preference", "evaluate")}
    # 3 lambdas and the target; DPO, ORPO and each of them after 2 SFT adapters; 1 + 4 + 2 + 4 + 6 cells
    assert counts == {"sft": 4, "reference": 3, "preference": 6, "evaluate": 17}
    assert len({t.key for t in targets}) == len(targets)
