"""Smoke cells whose branches are soups, in one store; and a stage of theirs, made."""

from collections.abc import Callable
from pathlib import Path

from paft.command.pipeline import context_of
from paft.config import RunConfig
from paft.graph.build import build
from paft.graph.stage import Stage
from paft.store.store import Store


def cells(compose: Callable[..., RunConfig], logs: Path) -> Callable[..., RunConfig]:
    """Words -> a smoke cell of these, in the store below `logs`."""
    words = ("experiment=smoke", "merge=task_arithmetic", f"logs={logs}", f"store={logs / 'stages'}")
    return lambda *more: compose(*words, *more)


def branch(config: RunConfig, name: str = "sft") -> Stage:
    return build(config).inputs["model"].inputs[name]


def made(config: RunConfig, stage: Stage) -> Path:
    store = Store(config.store)
    return store.ensure(stage, context_of(config, store, build(config)).run)
