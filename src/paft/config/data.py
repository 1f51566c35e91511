"""What it is trained on."""

from dataclasses import dataclass, field
from enum import Enum
from pathlib import PurePath
from typing import Any

from omegaconf import MISSING

from paft.config.checks import UNLESS_DEFAULT, Typed, require, require_pinned
from paft.config.formats import FIELDS, RowFormat

DEMO_VERSION = 1
"""Of the embedded data: raised whenever its rows for some seed change, and part of their identity."""


class Template(str, Enum):
    """Chat template written to the tokenizer of both branches; `tokenizer` keeps the model's own."""

    chatml = "chatml"
    zephyr = "zephyr"
    llama3 = "llama3"
    tokenizer = "tokenizer"


class TooLong(str, Enum):
    """What happens to a row whose answer does not fit `max_length`; counts are always reported."""

    error = "error"
    drop = "drop"
    truncate = "truncate"


class BadRows(str, Enum):
    """What happens to a row with a missing or empty field, wrong roles, equal answers, or a field whose meaning is not
    used, as images or a label that calls the answer bad, or that the chat template refuses; counts are reported."""

    error = "error"
    drop = "drop"


class Answers(str, Enum):
    """Which answers of a conversation are learnt: `all`, or `last` alone, with the others as part of its prompt. A
    template that rewrites earlier turns, as those that drop earlier thoughts, has no other."""

    all = "all"
    last = "last"


class SpecialTokens(str, Enum):
    """What the name of a special token, as `<|im_end|>`, in a message of a row is: that token (as transformers reads it
    by default, and as the prompts of tasks are read), plain text, or an error of its row."""

    token = "token"
    text = "text"
    error = "error"


class Skill(str, Enum):
    """`tool_call`: answers that are one JSON call of a tool; `honesty`: pairs that prefer the honest answer."""

    tool_call = "tool_call"
    honesty = "honesty"


@dataclass
class Source(Typed):
    """Where rows come from and how long they may be."""

    format: RowFormat = RowFormat.auto
    columns: dict[str, str] = field(default_factory=dict, metadata=UNLESS_DEFAULT)
    """Field of the format -> the column that holds it, where the file calls it otherwise, as {prompt: question,
    completion: answer}."""
    max_rows: int | None = None
    """Use only the first so many rows."""
    max_length: int = 1024
    """Tokens of prompt and answer together."""
    max_prompt_length: int = 512
    """Tokens of the prompt; a longer one loses its oldest tokens."""
    too_long: TooLong = TooLong.error
    bad_rows: BadRows = BadRows.error
    answers: Answers = field(default=Answers.all, metadata=UNLESS_DEFAULT)
    """Which answers of a conversation are learnt; of pairs it is the last."""
    held_out: int = field(default=0, metadata=UNLESS_DEFAULT)
    """At least so many rows are kept from training, for the tasks that say `rows`; see `paft.data.held_out`."""
    held_out_seed: int = field(default=0, metadata=UNLESS_DEFAULT)
    """Of the draw of the held-out rows."""
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
        known = set(self.columns) <= set(FIELDS)
        named = f"{{field: column}} with fields of a format = {', '.join(FIELDS)}"
        require(known, "data.*.columns", self.columns, named)
        once = len(set(self.columns.values())) == len(self.columns)
        require(once, "data.*.columns", self.columns, "{field: column} with each column once")

    @property
    def has_validation(self) -> bool:
        """Whether it has validation rows, of which no training learns."""
        return True


@dataclass
class DemoSource(Source):
    """Rows written by PAFT's own seeded generator."""

    skill: Skill = MISSING
    """Which rows are written."""
    num_rows: int = 512
    """Rows for training; 64 others are for validation."""
    seed: int = 0
    """Of the generator: another seed writes other rows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_rows > 0, "data.*.num_rows", self.num_rows, "positive")
        require(
            not self.columns, "data.*.columns", self.columns, "left out: the embedded rows need no mapping"
        )


@dataclass
class HubSource(Source):
    """A data set on the Hugging Face hub at a pinned commit."""

    repo: str = MISSING
    """The data set's repository, as `openai/gsm8k`."""
    revision: str = MISSING
    """Its commit, 40 hexadecimal digits: branches and tags move."""
    name: str | None = None
    """Configuration of the data set, as `main` of openai/gsm8k."""
    split: str = "train"
    """The split that is trained on; a slice as `train[:1000]` is one too."""
    validation_split: str | None = None
    """The split whose loss is reported; null: none is."""
    data_dir: str | None = None
    """The folder of the repository to read; null: the whole of it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.repo or self.revision:  # a source that no stage reads has neither
            require_pinned("data.*.revision", self.repo, self.revision)

    @property
    def has_validation(self) -> bool:
        return self.validation_split is not None


@dataclass
class FileSource(Source):
    """Rows of files on this disk; the sha256 of their contents, not their paths, is what they are known by."""

    path: Any = field(default=MISSING, metadata={"identity": False})
    """What to train on: a file, a pattern as 'rows/*.jsonl', a list as [a.jsonl,b.csv], or a folder that
    `datasets.save_to_disk` wrote. A file's ending says its kind: .jsonl, .json, .csv, .parquet or .arrow, each also
    packed, with .gz, .bz2 or .zst behind it."""
    validation_path: Any = field(default=None, metadata={"identity": False})
    """What the loss is reported of, as `path`; null: nothing."""
    mix: dict[str, float] = field(default_factory=dict, metadata={"identity": False})
    """In place of `path`: {a.jsonl: 0.7, b.jsonl: 0.3} draws each next row from a.jsonl with probability 0.7, in the
    order of its file and each once, until a file has none left (as datasets.interleave_datasets does, first
    exhausted). Weights need not sum to 1; they are part of what the rows are known by."""
    mix_seed: int = field(default=0, metadata=UNLESS_DEFAULT)
    """Of the draw of `mix`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, given in (("path", self.path), ("validation_path", self.validation_path)):
            listed = given if isinstance(given, list) else [given or ""]
            right = bool(listed) and all(isinstance(item, str) for item in listed)
            require(right, f"data.*.{name}", given, "a path, a pattern or a list of them")
        require(
            all(0 < weight < float("inf") for weight in self.mix.values()),
            "data.*.mix",
            self.mix,
            "{path: weight} with positive weights",
        )
        alone = not self.mix or self.path in ("", MISSING)
        require(alone, "data.*.mix", self.mix, "given alone, without data.*.path")

    @property
    def has_validation(self) -> bool:
        return bool(self.validation_path)

    def names(self, split: str = "train") -> list[str]:
        """The paths that a split is read from, as they were given."""
        given = self.validation_path if split == "validation" else list(self.mix) or self.path
        return list(given) if isinstance(given, list) else [str(given)]

    @property
    def shares(self) -> dict[str, float]:
        """Path of the mixture -> the share of rows that are drawn from it; empty without a mixture."""
        return {path: weight / sum(self.mix.values()) for path, weight in self.mix.items()}

    @property
    def title(self) -> str:
        """What tables call the rows to train on."""
        first, *more = (PurePath(name).name for name in self.names())
        return f"{first} + {len(more)} more" if more else first


@dataclass
class DataConfig(Typed):
    """The two training sets of a run and the chat template both are written in."""

    name: str = MISSING
    """What W&B groups runs by; part of no key."""
    template: Template = Template.chatml

    def __post_init__(self) -> None:
        preference = getattr(self, "preference", None)
        answers = preference.answers if isinstance(preference, Source) else Answers.all
        say = "left out: of a pair the last answers are learnt and no others"
        require(answers is Answers.all, "data.preference.answers", answers.value, say)


@dataclass
class DemoData(DataConfig):
    """Rows written by PAFT itself."""

    sft: DemoSource = field(default_factory=lambda: DemoSource(skill=Skill.tool_call))
    preference: DemoSource = field(default_factory=lambda: DemoSource(skill=Skill.honesty))


@dataclass
class HubData(DataConfig):
    """Rows of the Hugging Face hub."""

    sft: HubSource = MISSING
    preference: HubSource = MISSING


@dataclass
class FileData(DataConfig):
    """Rows of files on this disk."""

    sft: FileSource = MISSING
    preference: FileSource = MISSING
