"""Every setting of PAFT as a typed dataclass; importing this package loads no torch.

Hydra composes `conf/` into these types, so an unknown key or a value of the wrong type is refused while
the command line is read. Ranges are checked in `__post_init__`, which OmegaConf calls once all overrides
are in. A field marked `identity=False` cannot change a result and is left out of every stage key; one marked
"unless default" enters it only where it is set, so that older keys stay valid.
"""

from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from omegaconf import MISSING

from paft.config.checks import TYPES, incidental, require, require_pinned, require_sound
from paft.config.data import (
    Answers,
    BadRows,
    DataConfig,
    DemoData,
    DemoSource,
    FileData,
    FileSource,
    HubData,
    HubSource,
    Skill,
    Source,
    SpecialTokens,
    Template,
    TooLong,
)
from paft.config.evaluate import Backend, EvaluateConfig, EvaluateSplit, Rows, TaskConfig
from paft.config.formats import RowFormat
from paft.config.judge import AnnotationsJudge, JudgeConfig, LocalJudge, OpenAIJudge
from paft.config.judged import AlpacaEvalConfig, JudgedConfig, MTBenchConfig
from paft.config.merge import (
    METHODS,
    Combine,
    Election,
    ElectOn,
    MergeConfig,
    MergeOutput,
    Norm,
    Normalize,
    PruneBy,
    Rescale,
    Scope,
    Space,
    Statistic,
)
from paft.config.model import (
    DType,
    HubModel,
    LocalModel,
    ModelConfig,
    ModelShape,
    Quantization,
    TinyModel,
    WheelModel,
)
from paft.config.paradigms import Paradigm
from paft.config.penalty import L1Config, L1Method, L1Of, Sparsity
from paft.config.root import RunConfig
from paft.config.running import (
    Csv,
    HardwareConfig,
    LoggerConfig,
    Running,
    StrategyConfig,
    StrategyName,
    TrainerConfig,
    Wandb,
    WandbMode,
)
from paft.config.soup import SFTSoupConfig, SoupConfig, SoupKind
from paft.config.training import (
    ALL_LINEAR,
    LINEAR_MODULES,
    OBJECTIVES,
    BranchConfig,
    LoraConfig,
    PreferenceConfig,
    Schedule,
    SFTConfig,
    TakenKind,
    Tuning,
)

__all__ = [
    "ALL_LINEAR",
    "LINEAR_MODULES",
    "METHODS",
    "OBJECTIVES",
    "SCHEMAS",
    "AlpacaEvalConfig",
    "AnnotationsJudge",
    "Answers",
    "Backend",
    "BadRows",
    "BranchConfig",
    "Combine",
    "Csv",
    "DType",
    "DataConfig",
    "DemoData",
    "DemoSource",
    "ElectOn",
    "Election",
    "EvaluateConfig",
    "EvaluateSplit",
    "FileData",
    "FileSource",
    "HardwareConfig",
    "HubData",
    "HubModel",
    "HubSource",
    "JudgeConfig",
    "JudgedConfig",
    "L1Config",
    "L1Method",
    "L1Of",
    "LocalJudge",
    "LocalModel",
    "LoggerConfig",
    "LoraConfig",
    "MTBenchConfig",
    "MergeConfig",
    "MergeOutput",
    "ModelConfig",
    "ModelShape",
    "Norm",
    "Normalize",
    "OpenAIJudge",
    "Paradigm",
    "PreferenceConfig",
    "PruneBy",
    "Quantization",
    "Rescale",
    "RowFormat",
    "Rows",
    "RunConfig",
    "Running",
    "SFTConfig",
    "SFTSoupConfig",
    "Schedule",
    "Scope",
    "Skill",
    "SoupConfig",
    "SoupKind",
    "Source",
    "Space",
    "Sparsity",
    "SpecialTokens",
    "Statistic",
    "StrategyConfig",
    "StrategyName",
    "TakenKind",
    "TaskConfig",
    "Template",
    "TinyModel",
    "TooLong",
    "TrainerConfig",
    "Tuning",
    "Wandb",
    "WandbMode",
    "WheelModel",
    "decode",
    "incidental",
    "require",
    "require_pinned",
    "require_sound",
]

SCHEMAS: dict[str, type] = {
    "sft": SFTConfig,
    "tiny_model": TinyModel,
    "wheel_model": WheelModel,
    "hub_model": HubModel,
    "local_model": LocalModel,
    "demo_data": DemoData,
    "hub_data": HubData,
    "file_data": FileData,
    "evaluate": EvaluateConfig,
    "alpaca_eval": AlpacaEvalConfig,
    "mt_bench": MTBenchConfig,
    "openai_judge": OpenAIJudge,
    "local_judge": LocalJudge,
    "annotations_judge": AnnotationsJudge,
    "trainer": TrainerConfig,
    "strategy": StrategyConfig,
    "hardware": HardwareConfig,
    "wandb": Wandb,
    "csv": Csv,
}
"""Name in a YAML file's `/schema@_here_` -> the type that closes it; so are `METHODS` and `OBJECTIVES`."""


def decode(data: Any) -> Any:
    """The typed config that `stage.canonical(config, whole=True)` described, checked again.

    Type names are looked up among the dataclasses that derive from `Typed` and nowhere else. Raises `ValueError` for
    a type or a field that is none of theirs, and for a value that is missing or of another type.
    """
    if isinstance(data, list):
        return [decode(item) for item in data]
    if not isinstance(data, dict):
        return data
    if "type" not in data:
        return {name: decode(value) for name, value in data.items()}
    schema = TYPES.get(data["type"]) if isinstance(data["type"], str) else None
    if not (isinstance(schema, type) and is_dataclass(schema)):
        raise ValueError(
            f"unknown config type {data['type']!r:.60}; was it written by another version of PAFT?"
        )
    hints, given = get_type_hints(schema), data.keys() - {"type"}
    needed = {f.name for f in fields(schema) if f.default == MISSING and f.metadata.get("identity", True)}
    if wrong := sorted((given - hints.keys()) | (needed - given)):
        raise ValueError(
            f"{schema.__name__} has {', '.join(hints)}; {wrong[0]!r:.60} is missing or none of them"
        )
    values = {name: decode(data[name]) for name in given}
    for name, value in values.items():
        require_sound(value, f"{schema.__name__}.{name}")
    config: Any = schema(**values)
    return config
