"""The number of a stage in its key: what its kind says, one higher where only some configs' results have changed."""

from pathlib import Path
from typing import Any

from paft.config import DemoSource, HubModel, LocalModel, Template
from paft.files.jsonfile import read_object
from paft.graph.configs import BranchStage, DataStage, EvaluateStage
from paft.graph.rows import dropped_more
from paft.graph.stages import kind_of

RIGHT_FROM_THE_START = ("llama", "mistral", "qwen2", "qwen3")
"""Architectures of local bases whose stages keep the numbers above; see `version_of`."""


def version_of(name: str, config: Any) -> int:
    """The stage's number, one higher where only some configs' results have changed since it was given.

    - Rows of files and hubs: fields of a row were lost, ends of answers doubled. Rows in a brought tokenizer's own
      template: an answer was tokenised without what precedes it.
    - Rows of files and hubs of which bad ones are dropped, once more: those with tools, reasoning or typed parts were
      among them.
    - Trainings with LoRA dropout: masks depended on the micro-batch.
    - What runs a local base that is none of `RIGHT_FROM_THE_START`: heads lost their bias or scale, texts leaked into
      each other through convolutions.
    - Evaluations of brought bases in templates that may end a turn with another token than the EOS: answers ran on.
    """
    template, brought = getattr(config, "template", None), isinstance(config.model, LocalModel | HubModel)
    match config:
        case DataStage():
            changed: int = not isinstance(config.source, DemoSource) or (
                brought and template is Template.tokenizer
            )
            changed += dropped_more(config.source)
        case BranchStage():
            changed = config.branch.lora.dropout > 0
        case EvaluateStage():
            changed = brought and template is not Template.zephyr
        case _:
            changed = False
    kind = kind_of(name, config)
    if kind.runs_base and isinstance(config.model, LocalModel):
        changed = changed or not _was_right(Path(config.model.path))
    return kind.version + changed


def _was_right(folder: Path) -> bool:
    """Whether a base's results were its own before bases were proved."""
    settings = read_object(folder / "config.json")
    dropout = any(
        "drop" in key and isinstance(value, int | float) and value for key, value in settings.items()
    )
    return settings.get("model_type") in RIGHT_FROM_THE_START and not dropout
