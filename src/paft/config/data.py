"""What it is trained on."""

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from paft.config.checks import UNLESS_DEFAULT, Typed, incidental, require, require_pinned

DEMO_VERSION = 1
"""Of the embedded data: raised whenever its rows for some seed change, and part of their identity."""


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
    """What happens to a row with a missing or empty field, wrong roles, equal answers, or a field whose meaning is not
    used, as tools or a label that calls the answer bad, or that the chat template refuses; counts are reported."""

    error = "error"
    drop = "drop"


class SpecialTokens(str, Enum):
    """What the name of a special token, as `<|im_end|>`, in a message of a row is: that token (as transformers reads it
    by default, and as the prompts of tasks are read), plain text, or an error of its row."""

    token = "token"
    text = "text"
    error = "error"


class Skill(str, Enum):
    tool_call = "tool_call"
    honesty = "honesty"


@dataclass
class Source(Typed):
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
    held_out: int = field(default=0, metadata=UNLESS_DEFAULT)
    """At least so many rows are kept from training, for the tasks that say `rows`; see `paft.data.held_out`."""
    held_out_seed: int = field(default=0, metadata=UNLESS_DEFAULT)
    special_tokens_in_text: SpecialTokens = field(default=SpecialTokens.token, metadata=UNLESS_DEFAULT)

    def __post_init__(self) -> None:
        require(self.held_out >= 0, "data.*.held_out", self.held_out, "at least 0")
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
        if self.repo or self.revision:  # a source that no stage reads has neither
            require_pinned("data.*.revision", self.repo, self.revision)


@dataclass
class FileSource(Source):
    """A JSONL, JSON, CSV or Parquet file; its sha256, not its path, is its identity."""

    path: str = field(default=MISSING, metadata={"identity": False})
    validation_path: str | None = incidental(None)


@dataclass
class DataConfig(Typed):
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
