"""Every merge method in every space that it allows, of deltas of every objective; and what does not fit, by name.

All of them come from the registries: a new method or objective is in this grid without an edit.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from every_merge import may_refuse, merges, named
from full_models import save_base, save_tuned, weights_of

from paft.command.pipeline import context_of
from paft.config import MergeConfig, RunConfig, Space
from paft.graph.build import build
from paft.graph.stage import Stage
from paft.merge.apply import merge_adapters
from paft.merge.methods import METHODS
from paft.model.base import base_folder
from paft.objectives import OBJECTIVES
from paft.store.store import Store

PAIRED = [name for name, objective in OBJECTIVES.items() if objective.rows == "pairs"]
"""The embedded rows are pairs."""
TUNINGS = [("full", "full"), ("lora", "full"), ("full", "lora")]
"""Of SFT and preference, beside LoRA of both."""


def needs_factors(method: MergeConfig) -> bool:
    """Whether it is in the one space that deltas without factors have no bases of."""
    return method.space is Space.core and Space.delta in method.spaces


@pytest.fixture(scope="module")
def cell(compose: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory):
    """A smoke cell of an objective and a merge; all of them in one store, so that trainings are shared."""
    logs = tmp_path_factory.mktemp("combinations")
    words = ("experiment=smoke", "evaluate.limit=1", f"logs={logs}", f"store={logs / 'stages'}")

    composed = cache(lambda objective, *more: compose(*words, f"preference={objective}", *more))

    def config(objective: str, merge: MergeConfig, *more: str) -> RunConfig:
        return replace(composed(objective, *more), merge=replace(merge, prove=False))

    return config


def merged(config: RunConfig) -> tuple[Stage, Path]:
    """The cell's merge stage, run with all that it needs, and its folder."""
    store, evaluate = Store(config.store), build(config)
    merge = evaluate.inputs["model"]
    return merge, store.ensure(merge, context_of(config, store, evaluate).run)


@pytest.mark.parametrize("objective", PAIRED)
def test_every_merge_of_every_objective_changes_the_base_to_finite_weights(cell, objective):
    config = cell(objective, next(merges()))
    base = weights_of(base_folder(config.model))
    keys = set()
    for method in merges():
        try:
            stage, folder = merged(cell(objective, method))
        except ValueError as refused:
            assert may_refuse(method), named(method)
            assert str(refused).startswith(f"merge={method.name} "), refused
            continue
        keys.add(stage.key)
        weights = weights_of(folder)
        assert weights.keys() == base.keys(), named(method)
        assert all(w.isfinite().all() for w in weights.values()), named(method)
        changed = {name.rsplit(".", 2)[-2] for name, w in weights.items() if not torch.equal(w, base[name])}
        assert changed == {*config.sft.lora.target_modules}, named(method)

    assert len(keys) >= len([method for method in merges() if not may_refuse(method)])


@pytest.mark.parametrize(("sft", "preference"), TUNINGS)
def test_every_merge_of_full_fine_tuning(cell, sft, preference):
    """Of both branches, or beside a LoRA, everything that the full delta changes moves; in a space that is made of
    factors it is refused before anything runs."""
    words = (f"sft.tuning={sft}", f"preference.tuning={preference}", "sft.lr=1e-3", "preference.lr=1e-3")
    base = weights_of(base_folder(cell("dpo", next(merges()), *words).model))
    for method in merges():
        if needs_factors(method):
            with pytest.raises(ValueError, match=r"tuning=full gives a delta without factors"):
                cell("dpo", method, *words)
            continue
        try:
            _, folder = merged(cell("dpo", method, *words))
        except ValueError as refused:
            assert may_refuse(method), named(method)
            assert str(refused).startswith(f"merge={method.name} "), refused
            continue
        weights = weights_of(folder)
        assert weights.keys() == base.keys(), named(method)
        assert all(w.isfinite().all() for w in weights.values()), named(method)
        unmoved = {name for name, w in weights.items() if torch.equal(w, base[name])}
        assert not unmoved, named(method)


@pytest.mark.parametrize("name", METHODS)
def test_every_space_that_a_method_does_not_allow_is_refused_by_name(name):
    for space in set(Space) - set(METHODS[name].spaces):
        with pytest.raises(
            ValueError, match=rf"merge\.space must be .* for merge={name}, got '{space.value}'"
        ):
            METHODS[name](space=space)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[Path, dict[str, Path]]:
    """A base and two whole models of it, whose deltas have half of the larger one in common."""
    folder = tmp_path_factory.mktemp("models")
    base = save_base(folder / "base")
    sft = save_tuned(base, folder / "sft", 1)
    return base, {"sft": sft, "preference": save_tuned(sft, folder / "preference", 2)}


@pytest.mark.parametrize("method", merges(), ids=named)
def test_every_merge_of_whole_models_or_its_refusal(models, tmp_path, method: MergeConfig):
    """The space of factors, and methods that look at rows, say that they cannot take two folders of models."""
    base, branches = models
    if needs_factors(method) or method.needs:
        lacking = "merge.space=core is made of" if needs_factors(method) else f"merge={method.name} looks at"
        with pytest.raises(ValueError, match=lacking):
            merge_adapters(base, branches, method, tmp_path / "out")
        return
    merge_adapters(base, branches, method, tmp_path / "out")

    before, after = weights_of(base), weights_of(tmp_path / "out")
    assert all(w.isfinite().all() for w in after.values())
    assert not any(torch.equal(w, before[name]) for name, w in after.items())
