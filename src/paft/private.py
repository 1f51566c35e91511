"""What PAFT takes from inside of libraries, for want of anything public: all of it, and why.

`tests/test_private_api.py` holds it to the pinned versions, so that an upgrade fails there first. But for Hydra,
libraries load when a function is called.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

# whoever expands a grid as Hydra does, or adds to it, needs the class
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper as BasicSweeper

if TYPE_CHECKING:
    import lightning as L
    import torch
    from lm_eval.tasks import TaskManager
    from peft import LoraConfig
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def attention_of(base: "PreTrainedModel") -> str:
    """The attention a model was loaded with; `attn_implementation` can be given, and not asked for."""
    return str(base.config._attn_implementation)


def undivided(base: "PreTrainedModel") -> list[str]:
    """Classes of the layers that a model must not be cut in: the units of sharding."""
    return list(base._no_split_modules or [])


def is_stateful(base: "PreTrainedModel") -> bool:
    """Whether transformers knows the model to carry a state from token to token."""
    return bool(getattr(base, "_is_stateful", False))


def register_lora(config: "LoraConfig", layers: "Mapping[type[nn.Module], type[nn.Module]]") -> None:
    """Let peft put a layer of ours where it would put its own; documented, and still private."""
    config._register_custom_module(dict(layers))


def softmax_backward(grad: "Tensor", output: "Tensor", dim: int, dtype: "torch.dtype") -> "Tensor":
    """The gradient of a softmax from its output, in one pass; public is only the whole of it under autograd."""
    import torch

    result: Tensor = torch._softmax_backward_data(grad, output, dim, dtype)
    return result


def move_only_rows(module: "L.LightningModule", device: "torch.device") -> None:
    """Say where a module's rows go, where its parameters are placed by other means."""
    module._device = device


def specification(report: Any) -> Any:
    """What `wandb_workspaces.reports.v2.Report.save` would send, asking no server."""
    return report._to_model()


def rendered(
    tokenizer: "PreTrainedTokenizerBase",
    messages: list[dict[str, Any]],
    *,
    generation: bool,
    tools: list[dict[str, Any]] | None = None,
) -> str:
    """The text of `apply_chat_template`, for messages and tools of plain data in less than half of its time.

    It copies every message twice, in case it is no plain data.
    """
    from transformers import PreTrainedTokenizerBase
    from transformers.utils.chat_template_utils import _compile_jinja_template

    if type(tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template:
        given: Any = tools or None
        return str(
            tokenizer.apply_chat_template(
                messages, tools=given, tokenize=False, add_generation_prompt=generation
            )
        )
    template = _compile_jinja_template(tokenizer.get_chat_template())
    names = tokenizer.special_tokens_map
    return str(
        template.render(
            messages=messages, tools=tools or None, documents=None, add_generation_prompt=generation, **names
        )
    )


def task_settings(file: Path) -> dict[str, Any]:
    """What lm-eval reads in a task's YAML file and those it includes, its `!function`s loaded."""
    from lm_eval.tasks._yaml_loader import load_yaml

    return dict(load_yaml(file))


def task_entry(name: str, kind: str, path: str | None, settings: Any, tags: list[str]) -> Any:
    """An entry of a manager's index, whose class and kinds lm-eval exports nowhere."""
    from lm_eval.tasks._index import Entry, Kind

    return Entry(name, Kind[kind], None if path is None else Path(path), settings, set(tags))


def know_also(manager: "TaskManager", others: Mapping[str, Any]) -> None:
    """Let a manager know the entries of an index that was read before, but for names that it has.

    `TaskManager` reads folders alone, and lm-eval's own takes seconds.
    """
    index = manager._index = {**others, **manager._index}
    manager._all_tasks = sorted(index)
    kinds = {name: entry.kind.name for name, entry in index.items()}
    manager._all_subtasks = sorted(name for name, kind in kinds.items() if kind in ("TASK", "PY_TASK"))
    manager._all_groups = sorted(name for name, kind in kinds.items() if kind == "GROUP")
    manager._all_tags = sorted(name for name, kind in kinds.items() if kind == "TAG")
