"""Every setting of PAFT as a typed dataclass; importing this module loads no torch.

Hydra composes `conf/` into these types, so an unknown key or a value of the wrong type is refused while
the command line is read. Ranges are checked in `__post_init__`, which OmegaConf calls once all overrides
are in. A field marked `identity=False` cannot change a result and is left out of every stage key.
"""

import re
from dataclasses import dataclass, field, is_dataclass
from enum import Enum
from typing import Any, get_type_hints

from omegaconf import MISSING

LINEAR_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def require(ok: bool, name: str, value: object, allowed: str) -> None:
    """Raise the one shape of range error: the key, what is allowed, what was given."""
    if not ok:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")


def incidental(default: Any) -> Any:
    """A field that cannot change a result, hence no part of any stage key."""
    return field(default=default, metadata={"identity": False})


# --- model -------------------------------------------------------------------------------------------


class DType(str, Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"


@dataclass
class ModelConfig:
    """What every kind of base model shares."""

    name: str = MISSING
    """Label in tables and W&B."""
    dtype: DType = DType.bfloat16
    """Storage type of the frozen base and of merged models; LoRA factors are always float32."""
    attention: str = "sdpa"
    """transformers' `attn_implementation`."""
    trust_remote_code: bool = False
    """Run Python code shipped in the model repository. Off unless you turn it on."""


@dataclass
class TinyModel(ModelConfig):
    """A random Llama of a few thousand parameters with a byte tokenizer, made on the spot from `seed`."""

    seed: int = 0
    hidden_size: int = 64
    num_layers: int = 2
    num_heads: int = 4
    num_kv_heads: int = 2


@dataclass
class WheelModel(ModelConfig):
    """A GGUF file inside an installed Python package, converted once to safetensors in the cache."""

    package: str = MISSING
    version: str = MISSING
    file: str = MISSING


@dataclass
class HubModel(ModelConfig):
    """A model repository on the Hugging Face hub at a pinned commit."""

    repo: str = MISSING
    revision: str = MISSING

    def __post_init__(self) -> None:
        require_pinned("model.revision", self.repo, self.revision)


@dataclass
class LocalModel(ModelConfig):
    """A folder in Hugging Face format with safetensors weights; its content, not its path, is its identity."""

    path: str = field(default=MISSING, metadata={"identity": False})
    sha256: str = ""
    """Filled in from the folder's files when the graph is built."""


def require_pinned(name: str, repo: str, revision: str) -> None:
    """Branches and tags move; a stage key must not."""
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ValueError(
            f"{name} must be a 40-digit commit of {repo}, got {revision!r}; "
            f"branches move. Copy one from huggingface.co/{repo}/commits"
        )


# --- data --------------------------------------------------------------------------------------------


class Template(str, Enum):
    """Chat template written to the tokenizer of both branches; `tokenizer` keeps the model's own."""

    chatml = "chatml"
    zephyr = "zephyr"
    llama3 = "llama3"
    tokenizer = "tokenizer"


class RowFormat(str, Enum):
    """How a row of a source is read; `auto` decides by the columns of the first row."""

    auto = "auto"
    messages = "messages"
    prompt_completion = "prompt_completion"
    preference = "preference"
    gsm8k = "gsm8k"
    hh = "hh"


class TooLong(str, Enum):
    """What happens to a row whose answer does not fit `max_length`; counts are always reported."""

    error = "error"
    drop = "drop"
    truncate = "truncate"


class BadRows(str, Enum):
    """What happens to a row with a missing or empty field, wrong roles, or identical answers; counts are reported."""

    error = "error"
    drop = "drop"


class Skill(str, Enum):
    tool_call = "tool_call"
    honesty = "honesty"


@dataclass
class Source:
    """Where rows come from and how long they may be."""

    format: RowFormat = RowFormat.auto
    max_rows: int | None = None
    """Use only the first so many rows."""
    max_length: int = 1024
    """Tokens of prompt and answer together."""
    max_prompt_length: int = 512
    """Tokens of the prompt; a longer one loses its oldest tokens."""
    too_long: TooLong = TooLong.error
    bad_rows: BadRows = BadRows.error

    def __post_init__(self) -> None:
        require(
            self.max_rows is None or self.max_rows > 0, "data.*.max_rows", self.max_rows, "positive or null"
        )
        require(self.max_length > 1, "data.*.max_length", self.max_length, "at least 2 tokens")
        require(
            0 < self.max_prompt_length < self.max_length,
            "data.*.max_prompt_length",
            self.max_prompt_length,
            f"between 1 and max_length - 1 = {self.max_length - 1}",
        )


@dataclass
class DemoSource(Source):
    """Rows written by PAFT's own seeded generator."""

    skill: Skill = MISSING
    num_rows: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_rows > 0, "data.*.num_rows", self.num_rows, "positive")


@dataclass
class HubSource(Source):
    """A data set on the Hugging Face hub at a pinned commit."""

    repo: str = MISSING
    revision: str = MISSING
    name: str | None = None
    """Configuration of the data set, as `main` of openai/gsm8k."""
    split: str = "train"
    validation_split: str | None = None
    data_dir: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_pinned("data.*.revision", self.repo, self.revision)


@dataclass
class FileSource(Source):
    """A JSONL, JSON, CSV or Parquet file; its sha256, not its path, is its identity."""

    path: str = field(default=MISSING, metadata={"identity": False})
    validation_path: str | None = incidental(None)


@dataclass
class DataConfig:
    """The two training sets of a run and the chat template both are written in."""

    name: str = MISSING
    template: Template = Template.chatml


@dataclass
class DemoData(DataConfig):
    sft: DemoSource = field(default_factory=lambda: DemoSource(skill=Skill.tool_call))
    preference: DemoSource = field(default_factory=lambda: DemoSource(skill=Skill.honesty))


@dataclass
class HubData(DataConfig):
    sft: HubSource = MISSING
    preference: HubSource = MISSING


@dataclass
class FileData(DataConfig):
    sft: FileSource = MISSING
    preference: FileSource = MISSING


# --- training ----------------------------------------------------------------------------------------


class Schedule(str, Enum):
    cosine = "cosine"
    linear = "linear"
    constant = "constant"
    inverse_sqrt = "inverse_sqrt"


class L1Of(str, Enum):
    """`delta`: sum of |alpha/rank * B A| (equation 1 read literally); `factors`: sum of |A| and |B|."""

    delta = "delta"
    factors = "factors"


@dataclass
class LoraConfig:
    rank: int = 16
    alpha: float = 16.0
    """The delta is alpha / rank * B A."""
    dropout: float = 0.0
    target_modules: list[str] = field(default_factory=lambda: list(LINEAR_MODULES))

    def __post_init__(self) -> None:
        require(self.rank > 0, "lora.rank", self.rank, "positive")
        require(self.alpha > 0, "lora.alpha", self.alpha, "positive")
        require(0 <= self.dropout < 1, "lora.dropout", self.dropout, "in [0, 1)")
        require(bool(self.target_modules), "lora.target_modules", self.target_modules, "a non-empty list")


@dataclass
class BranchConfig:
    """What SFT and preference training share: one LoRA, AdamW, one schedule, one global batch."""

    lora: LoraConfig = field(default_factory=LoraConfig)
    lr: float = 2e-4
    schedule: Schedule = Schedule.cosine
    warmup_ratio: float = 0.1
    """Share of all steps over which the learning rate rises to `lr`."""
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    max_grad_norm: float = 1.0
    global_batch_size: int = 16
    """Rows between two optimizer steps, over all devices."""
    epochs: int = 1
    max_steps: int | None = None
    """Optimizer steps; overrides `epochs`."""

    def __post_init__(self) -> None:
        at = self.branch
        require(self.lr > 0, f"{at}.lr", self.lr, "positive")
        require(0 <= self.warmup_ratio < 1, f"{at}.warmup_ratio", self.warmup_ratio, "in [0, 1)")
        require(self.weight_decay >= 0, f"{at}.weight_decay", self.weight_decay, "at least 0")
        require(0 <= self.beta1 < 1, f"{at}.beta1", self.beta1, "in [0, 1)")
        require(0 <= self.beta2 < 1, f"{at}.beta2", self.beta2, "in [0, 1)")
        require(self.max_grad_norm > 0, f"{at}.max_grad_norm", self.max_grad_norm, "positive")
        require(self.global_batch_size > 0, f"{at}.global_batch_size", self.global_batch_size, "positive")
        require(self.epochs > 0, f"{at}.epochs", self.epochs, "positive")
        require(
            self.max_steps is None or self.max_steps > 0,
            f"{at}.max_steps",
            self.max_steps,
            "positive or null",
        )

    @property
    def branch(self) -> str:
        return "preference"


@dataclass
class L1Config:
    """The penalty of equation 1: weight * |delta_sft|_1, summed over every element."""

    weight: float = 0.0
    """The root key `lambda`."""
    of: L1Of = L1Of.delta

    def __post_init__(self) -> None:
        require(0 <= self.weight < float("inf"), "lambda", self.weight, "a finite number, at least 0")


@dataclass
class SFTConfig(BranchConfig):
    l1: L1Config = field(default_factory=L1Config)

    @property
    def branch(self) -> str:
        return "sft"


@dataclass
class PreferenceConfig(BranchConfig):
    """Base of the preference objectives."""


class DPOLoss(str, Enum):
    sigmoid = "sigmoid"
    ipo = "ipo"
    hinge = "hinge"


@dataclass
class DPO(PreferenceConfig):
    loss: DPOLoss = DPOLoss.sigmoid
    beta: float = 0.1
    label_smoothing: float = 0.0
    """Share of labels taken to be flipped (conservative DPO); sigmoid only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.beta > 0, "preference.beta", self.beta, "positive")
        require(
            0 <= self.label_smoothing < 0.5, "preference.label_smoothing", self.label_smoothing, "in [0, 0.5)"
        )
        if self.label_smoothing and self.loss is not DPOLoss.sigmoid:
            raise ValueError(
                f"preference.label_smoothing={self.label_smoothing} needs preference.loss=sigmoid, "
                f"got {self.loss.value!r}; set it to 0"
            )


class NLLScope(str, Enum):
    """Which tokens of the chosen text enter ORPO's likelihood term."""

    sequence = "sequence"
    response = "response"


@dataclass
class ORPO(PreferenceConfig):
    beta: float = 0.1
    """Weight of the odds-ratio term (lambda in the ORPO paper)."""
    nll_scope: NLLScope = NLLScope.sequence

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.beta > 0, "preference.beta", self.beta, "positive")


# --- merge -------------------------------------------------------------------------------------------


class SlerpSpace(str, Enum):
    """`delta` interpolates the deltas; `full` interpolates whole weights, as mergekit does."""

    delta = "delta"
    full = "full"


class Election(str, Enum):
    """Sign of a position by `mass` (sign of the sum) or by `count` (sign of the sum of signs)."""

    mass = "mass"
    count = "count"  # type: ignore[assignment]  # str has a method of that name


class ElectOn(str, Enum):
    """Elect on weighted deltas (mergekit) or before weighting (TIES reference, peft)."""

    weighted = "weighted"
    unweighted = "unweighted"


class Normalize(str, Enum):
    """Divide by the agreeing weights (mergekit), by the agreeing count (peft), or not at all."""

    weights = "weights"
    count = "count"  # type: ignore[assignment]  # str has a method of that name
    none = "none"


class Scope(str, Enum):
    """Keep the largest share of each tensor (mergekit), or of all tensors together (TIES reference)."""

    tensor = "tensor"
    all = "global"


class Rescale(str, Enum):
    """After dropping: restore the L1 norm of this draw (mergekit), divide by density (DARE paper), or nothing."""

    l1 = "l1"
    inverse_density = "inverse_density"
    none = "none"


@dataclass
class MergeConfig:
    """What every method shares. Weights are given in the order SFT, preference."""

    keep: bool = incidental(True)
    """False deletes a merged model once it is evaluated."""


@dataclass
class WeightedMerge(MergeConfig):
    weights: list[float] = field(default_factory=lambda: [1.0, 1.0])
    scale: float = 1.0
    """Factor on the merged delta (lambda in the task-arithmetic and TIES papers)."""

    def __post_init__(self) -> None:
        require(len(self.weights) == 2, "merge.weights", self.weights, "two numbers: [sft, preference]")


@dataclass
class Linear(WeightedMerge):
    """Weighted average of the deltas."""

    normalize: bool = True
    """Divide by the sum of the weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not self.normalize or sum(self.weights) != 0, "merge.weights", self.weights, "not summing to 0"
        )


@dataclass
class TaskArithmetic(WeightedMerge):
    """Weighted sum of the deltas times `scale`."""


@dataclass
class Slerp(MergeConfig):
    """Spherical interpolation from SFT (t = 0) to preference (t = 1)."""

    t: float = 0.5
    space: SlerpSpace = SlerpSpace.delta

    def __post_init__(self) -> None:
        require(0 <= self.t <= 1, "merge.t", self.t, "in [0, 1]")


@dataclass
class SparseMerge(WeightedMerge):
    density: float = 0.5
    """Share of each delta that is kept; 1 keeps everything."""
    sft_density: float | None = None
    """Density of the SFT delta alone; null uses `density`."""
    preference_density: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("density", "sft_density", "preference_density"):
            value = getattr(self, name)
            require(value is None or 0 < value <= 1, f"merge.{name}", value, "in (0, 1]")

    @property
    def densities(self) -> list[float]:
        own = (self.sft_density, self.preference_density)
        return [self.density if value is None else value for value in own]


@dataclass
class Ties(SparseMerge):
    """Trim by magnitude, elect signs, average what agrees (Yadav et al. 2023)."""

    election: Election = Election.mass
    elect_on: ElectOn = ElectOn.weighted
    normalize: Normalize = Normalize.weights
    scope: Scope = Scope.tensor


@dataclass
class DareLinear(SparseMerge):
    """Drop at random, rescale, add (Yu et al. 2023)."""

    rescale: Rescale = Rescale.l1
    normalize: Normalize = Normalize.none
    seed: int = 42
    """Of the drop masks, together with branch and tensor name."""


@dataclass
class DareTies(DareLinear):
    """Drop at random, rescale, elect signs, add what agrees: the paper's DARE TIES."""

    election: Election = Election.mass
    elect_on: ElectOn = ElectOn.weighted


# --- evaluate ----------------------------------------------------------------------------------------


@dataclass
class TaskConfig:
    """One column of the results table."""

    task: str = MISSING
    """lm-eval task or group name."""
    metric: str = MISSING
    """Key in lm-eval's results, as `acc_norm,none`."""
    num_fewshot: int | None = None
    higher_is_better: bool = True
    in_average: bool = True
    """Whether the column enters the average of the row."""
    mean_over: str | None = None
    """Average this metric over the group's subtasks whose name starts so, each subtask counting once."""


@dataclass
class EvaluateConfig:
    name: str = MISSING
    tasks: dict[str, TaskConfig] = MISSING
    """Column name -> task, in table order."""
    apply_chat_template: bool = False
    batch_size: int = 16
    """Rows scored at once; padding makes it part of the last digits, hence of the key."""
    limit: int | None = None
    """Use only the first so many items of each task: for trying things out, never for a result."""
    seed: int = 1234

    def __post_init__(self) -> None:
        require(self.batch_size > 0, "evaluate.batch_size", self.batch_size, "positive")
        require(self.limit is None or self.limit > 0, "evaluate.limit", self.limit, "positive or null")


# --- how to run: none of this may change a result ----------------------------------------------------


@dataclass
class TrainerConfig:
    accelerator: str = "cpu"
    devices: int = 1
    num_nodes: int = 1
    micro_batch_size: int = 8
    """Rows forwarded at once on one device; the update does not depend on it."""
    checkpoint_every: int = 50
    """Optimizer steps between two checkpoints to resume from."""
    log_every: int = 1
    validation_rows: int = 64
    """Held-out rows scored at the end of training, where the source has some."""
    gradient_checkpointing: bool = False
    progress_bar: bool = True

    def __post_init__(self) -> None:
        allowed = ("cpu", "gpu")
        require(self.accelerator in allowed, "trainer.accelerator", self.accelerator, f"one of {allowed}")
        for name in ("devices", "num_nodes", "micro_batch_size", "checkpoint_every", "log_every"):
            require(getattr(self, name) > 0, f"trainer.{name}", getattr(self, name), "positive")


class StrategyName(str, Enum):
    single = "single"
    ddp = "ddp"
    fsdp = "fsdp"
    fsdp_hybrid = "fsdp_hybrid"


@dataclass
class StrategyConfig:
    name: StrategyName = StrategyName.single
    cpu_offload: bool = False
    """Keep sharded parameters in host memory between uses (fsdp only)."""


class WandbMode(str, Enum):
    """`auto` is online when a W&B key is found and offline otherwise."""

    auto = "auto"
    online = "online"
    offline = "offline"


@dataclass
class LoggerConfig:
    """Base of the loggers."""


@dataclass
class Wandb(LoggerConfig):
    project: str = "paft"
    entity: str | None = None
    mode: WandbMode = WandbMode.auto
    group: str = "paft"
    """All runs of one sweep share it."""
    tags: list[str] = field(default_factory=list)


@dataclass
class Csv(LoggerConfig):
    """Training curves as metrics.csv beside the adapter, nothing else."""


# --- the whole ---------------------------------------------------------------------------------------


class Paradigm(str, Enum):
    parallel = "parallel"
    sequential = "sequential"
    sft = "sft"
    preference = "preference"
    base = "base"


@dataclass
class RunConfig:
    """The root. The root key `lambda` cannot be a Python name; it lives in `sft.l1.weight`."""

    model: ModelConfig = MISSING
    data: DataConfig = MISSING
    sft: SFTConfig = field(default_factory=SFTConfig)
    preference: PreferenceConfig = MISSING
    merge: MergeConfig = MISSING
    evaluate: EvaluateConfig = MISSING
    trainer: TrainerConfig = MISSING
    strategy: StrategyConfig = MISSING
    logger: LoggerConfig = MISSING
    callbacks: dict[str, Any] = field(default_factory=dict)
    """Name -> Lightning callback as `_target_` and arguments."""
    paradigm: Paradigm = Paradigm.parallel
    seed: int = 42
    logs: str = "logs"
    store: str = "logs/stages"
    plan: bool = False
    offline: bool = False
    """Never touch the network: hub files must be in the local cache already."""

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", self.seed, "at least 0")
        devices = self.trainer.devices * self.trainer.num_nodes
        if devices > 1 and self.strategy.name is StrategyName.single:
            raise ValueError(
                f"trainer uses {devices} devices but strategy=single uses one; "
                "set strategy=ddp, fsdp or fsdp_hybrid, or trainer.devices=1"
            )
        for at in ("sft", "preference"):
            rows = getattr(self, at).global_batch_size
            require(
                rows % devices == 0,
                f"{at}.global_batch_size",
                rows,
                f"a multiple of the {devices} devices, so that each gets the same number of rows",
            )


SCHEMAS: dict[str, type] = {
    "sft": SFTConfig,
    "tiny_model": TinyModel,
    "wheel_model": WheelModel,
    "hub_model": HubModel,
    "local_model": LocalModel,
    "demo_data": DemoData,
    "hub_data": HubData,
    "file_data": FileData,
    "dpo": DPO,
    "orpo": ORPO,
    "linear": Linear,
    "task_arithmetic": TaskArithmetic,
    "slerp": Slerp,
    "ties": Ties,
    "dare_ties": DareTies,
    "dare_linear": DareLinear,
    "evaluate": EvaluateConfig,
    "trainer": TrainerConfig,
    "strategy": StrategyConfig,
    "wandb": Wandb,
    "csv": Csv,
}
"""Name in a YAML file's `/schema@_here_` -> the type that closes it."""


def decode(data: Any) -> Any:
    """The typed config that `stage.canonical(config, whole=True)` described, checked again.

    Type names are looked up among this module's own dataclasses and nowhere else.
    """
    if isinstance(data, list):
        return [decode(item) for item in data]
    if not isinstance(data, dict):
        return data
    if "type" not in data:
        return {name: decode(value) for name, value in data.items()}
    schema = globals().get(data["type"])
    if not (isinstance(schema, type) and is_dataclass(schema)):
        raise ValueError(f"unknown config type {data['type']!r}")
    hints = get_type_hints(schema)
    values = {name: decode(value) for name, value in data.items() if name != "type"}
    return schema(**{name: _typed(hints[name], value) for name, value in values.items()})


def _typed(hint: Any, value: Any) -> Any:
    return hint(value) if isinstance(hint, type) and issubclass(hint, Enum) else value
