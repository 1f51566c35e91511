"""A grid's cells composed together are what Hydra composes of each alone."""

import random
from collections.abc import Callable

import hydra
import pytest
from conftest import ROOT
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from paft.command import cells
from paft.command.cells import compose_cells
from paft.command.compose import register_schemas, to_config
from paft.command.mistakes import explain
from paft.config import RunConfig
from paft.graph.stage import canonical

CHOICES = [
    ("merge=slerp", "merge=ties", "merge=dare", "merge=linear"),
    ("preference=dpo", "preference=orpo"),
    ("model=tiny", "model=smollm2_135m"),
    ("experiment=smoke", "experiment=study/l1_of"),
]
VALUES = [
    ("lambda=0", "lambda=1e-4", "lambda=1", "lambda=true", "lambda='1e-3'"),
    ("seed=1", "seed=2.0", "seed=-1", "seed=null"),
    ("sft.lr=1e-3", "sft.lr=2", "sft.l1.weight=1e-5", "sft.l1.weight=${sft.lr}", "sft.l1.of=factors"),
    ("merge.density=0.3", "merge.density=1", "merge.weights=[0.3,0.7]", "merge.keep=false"),
    ("paradigm=sft", "paradigm=base", "paradigm=none"),
    ("preference.max_steps=3", "preference.max_steps=null", "++preference.beta=0.2", "~preference.beta"),
    ("logs=a", "logs='b c'", "logs=${seed}"),
    ("sft.l1={weight:0.5}", "+merge.nothing=1", "nothing=1"),
    ("evaluate.tasks.tool_call.num_items=5", "evaluate.tasks.tool_call.num_items=true"),
    ("trainer.devices=2", "trainer=gpu", "hardware.name=mine"),
]


@pytest.fixture
def initialised():
    register_schemas()
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield


def alone(words: tuple[str, ...]) -> RunConfig:
    return to_config(hydra.compose("train", overrides=list(words)))


def told(compose: Callable[[], object]) -> object:
    """The whole config with type names, or what the person reads."""
    try:
        return canonical(compose(), whole=True)
    except (ValueError, HydraException, OmegaConfBaseException) as error:
        return explain(error)


def random_cell(draw: random.Random) -> tuple[str, ...]:
    chosen = [draw.choice(options) for options in CHOICES if draw.random() < 0.5]
    chosen += [draw.choice(options) for options in draw.choices(VALUES, k=draw.randint(1, 4))]
    return tuple(draw.sample(chosen, len(chosen)))


@pytest.mark.parametrize("seed", [2, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in range(10, 16))])
def test_cells_composed_together_are_those_composed_alone(initialised, seed):
    draw, composer = random.Random(seed), cells._Composer(cells.compose_alone)
    outcomes = []
    for words in [random_cell(draw) for _ in range(16)]:
        expected = told(lambda words=words: alone(words))
        assert told(lambda words=words: composer(0, words)) == expected, words
        outcomes.append(isinstance(expected, dict))

    assert True in outcomes and False in outcomes


@pytest.mark.parametrize("key", ["lambda", "seed", "sft.lr"])
def test_a_value_that_differs_from_a_good_one_in_type_alone_is_refused(initialised, key):
    wrong = told(lambda: alone((f"{key}=true",)))

    assert isinstance(wrong, str)
    assert told(lambda: compose_cells([(f"{key}=1",), (f"{key}=true",)])) == wrong


def test_files_are_composed_once_for_cells_that_differ_in_plain_values(initialised, monkeypatch):
    composed = []
    compose = hydra.compose
    monkeypatch.setattr(
        hydra, "compose", lambda *a, overrides: composed.append(overrides) or compose(*a, overrides=overrides)
    )
    grid = [
        ("merge=" + merge, f"lambda={weight}", f"seed={seed}")
        for merge in ("ties", "dare")
        for weight in ("0", "1e-4", "1e-3")
        for seed in "123"
    ]

    configs = compose_cells(grid)

    assert composed == [["merge=ties"], ["merge=dare"]]
    assert [(c.sft.l1.weight, c.seed) for c in configs[:4]] == [(0, 1), (0, 2), (0, 3), (1e-4, 1)]
    assert configs[9].merge != configs[0].merge and configs[9].sft == configs[0].sft
