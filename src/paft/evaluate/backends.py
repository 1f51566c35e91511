"""What may compute an evaluation's answers, each one entry; importing this module loads none of them."""

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paft.config import Backend, EvaluateConfig, ModelConfig, TaskConfig
from paft.evaluate.leaves import leaves
from paft.evaluate.results import BACKEND
from paft.graph.task_files import settings_of

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedTokenizerBase

    from paft.model.paths import FastPaths


@dataclass(frozen=True)
class Scored:
    """A model that is to be scored, and what it is loaded for."""

    folder: Path
    tokenizer: "PreTrainedTokenizerBase"
    model: ModelConfig
    """With the type that it is loaded in."""
    evaluate: EvaluateConfig
    work: Path
    """A folder for what only this run needs."""
    device: str | None = None
    """The kind that the trainer names, `cuda` or `cpu`; None: where it is loaded, in the memory of the host."""
    paths: "FastPaths | None" = None
    """What the base was proved to take on it."""


@dataclass(frozen=True)
class Engine:
    """A backend."""

    package: str
    """What it computes with; its version stands beside the scores."""
    module: str
    """Has `load(scored: Scored) -> LM`, lm-eval's own kind of model."""
    install: str = ""
    generation: frozenset[str] | None = None
    """The settings of generated text that it knows, by lm-eval's names; None: those that a task has."""
    asks: tuple[str, ...] = ()
    """Settings of a task that put something to the model which it cannot read."""


# fmt: off
SAMPLING = frozenset((
    "until", "do_sample", "max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens", "temperature",
    "top_p", "top_k", "min_p", "seed", "repetition_penalty", "presence_penalty", "frequency_penalty", "min_tokens",
    "ignore_eos", "stop_token_ids", "bad_words", "logit_bias", "skip_special_tokens", "spaces_between_special_tokens",
    "include_stop_str_in_output",
))
# fmt: on
"""What lm-eval's VLLM takes out of a task's generation_kwargs, and the rest of vLLM's `SamplingParams` that say how one
text is written; any other name is a TypeError there, in the middle of a run."""
ENGINES: Mapping[Backend, Engine] = {
    Backend.hf: Engine("transformers", "paft.evaluate.lm"),
    Backend.vllm: Engine(
        "vllm",
        "paft.evaluate.vllm",
        "pip install 'paft[vllm]'",
        SAMPLING,
        ("doc_to_image", "doc_to_audio", "doc_to_video"),
    ),
}


def load(scored: Scored) -> "LM":
    """The model as lm-eval asks it, by the backend of its evaluation."""
    lm: LM = importlib.import_module(ENGINES[scored.evaluate.backend].module).load(scored)
    return lm


def made_by(backend: Backend) -> dict[str, str]:
    """What results.json says of it."""
    return dict(zip(BACKEND, (backend.value, version(ENGINES[backend].package)), strict=True))


def require_backend(config: EvaluateConfig) -> None:
    """Raise `ValueError` with the line that installs what the backend lacks."""
    engine = ENGINES[config.backend]
    if find_spec(engine.package) is None:
        raise ValueError(
            f"evaluate.backend={config.backend.value} needs the package {engine.package}, which this machine lacks; "
            f"run: {engine.install}, or leave evaluate.backend out"
        )


def refuse_settings(config: EvaluateConfig, manager: "TaskManager") -> None:
    """Raise `ValueError` naming the first task and setting that the backend cannot do."""
    engine = ENGINES[config.backend]
    for column, task in config.tasks.items():
        for name, settings in _settings(task, manager):
            if wrong := _unknown(engine, settings):
                raise ValueError(
                    f"evaluate.tasks.{column}.task={task.task}: {name} has {wrong}, which "
                    f"evaluate.backend={config.backend.value} cannot do; leave evaluate.backend out, or the column"
                )


def _unknown(engine: Engine, settings: Mapping[str, Any]) -> str:
    """The first setting of a task that the engine does not know, as it is written; empty for none."""
    for name in engine.asks:
        if settings.get(name) is not None:
            return f"{name}: {settings[name]}"
    written = settings.get("generation_kwargs") or {}
    known = written if engine.generation is None else engine.generation
    return next(
        (f"generation_kwargs.{name}: {value}" for name, value in written.items() if name not in known), ""
    )


def _settings(task: TaskConfig, manager: "TaskManager") -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and settings of every single task of a column, with what their files include."""
    if task.file:
        yield task.task, settings_of(task.file)
        return
    for name in leaves([task.task], manager):
        yield name, (manager.task_index[name].cfg or {}) if name in manager.task_index else {}
