"""The second study's own cells, composed from its experiments, with invented numbers in place of trainings."""

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from synthetic_store import fill

from hydra_plugins.paft_grids.grids import union
from paft.command.compose import register_schemas, to_config
from paft.config import RunConfig
from paft.files.jsonfile import read_object, write_json

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
STUDY2 = ROOT / "docs/study2"
BLOCKS = ("main", "merges", "paradigms", "objectives", "tuned", "full")
"""In the order of `make study2`."""


def words_of(block: str, *words: str) -> list[list[str]]:
    """The overrides of every cell of a block."""
    file = OmegaConf.load(CONF / f"experiment/study2/{block}.yaml")
    grids = OmegaConf.to_container(OmegaConf.select(file, "hydra.sweeper.grids"))
    return union(grids, OverridesParser.create().parse_overrides([f"experiment=study2/{block}", *words]))


def composed(cells: Iterable[Sequence[str]]) -> list[RunConfig]:
    register_schemas()
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return [to_config(hydra.compose("train", overrides=list(words))) for words in cells]


def add(store: Path, cells: Sequence[Sequence[str]]) -> None:
    """Finish these cells in the store, each by its own command and with a sign conflict of its own."""
    for words, target in zip(cells, fill(store, composed(cells)), strict=True):
        file = store / "evaluate" / target.key / "stage.json"
        record = read_object(file)
        record["run"]["command"] = shlex.join(["python", "train.py", *words])
        write_json(file, record)
    for file in store.glob("*/*/merge.json"):
        report = read_object(file)
        report["sign_conflict"] = fmean(layer["sign_conflict"] for layer in report["layers"].values())
        write_json(file, report)
