"""How many rows and tokens a training set has: counted where its data stage is finished, assumed elsewhere.

Rows are those the data sets' cards state; lengths are rounded means with a chat template, counted with SmolLM2's
tokenizer where the rows were at hand (PAFT's own, GSM8K, HH) and guessed elsewhere. The tiny model reads bytes.
"""

from dataclasses import dataclass, replace

from paft.config import (
    BranchConfig,
    DemoSource,
    FileSource,
    HubSource,
    ModelConfig,
    Skill,
    Source,
    TinyModel,
)
from paft.cost.work import Work, learns_prompt, pair_work, sequence_work
from paft.data.sources import DEMO_VALIDATION_ROWS
from paft.files.listed import listed_files
from paft.graph.stage import Stage
from paft.store.store import Store


@dataclass(frozen=True)
class Rows:
    """A training set of `num` rows: mean tokens of a prompt and of an answer, of which a pair has two."""

    num: int
    prompt: float
    answer: float
    pairs: bool
    longest: float
    """Tokens of the longest sequence."""
    held_out: int = 0
    """Rows of the validation split."""
    assumed: tuple[str, ...] = ()
    """What these figures rest on where nobody has counted."""

    @property
    def tokens(self) -> float:
        """Of a mean row; a prompt counts with each of its answers."""
        return (self.prompt + self.answer) * (2 if self.pairs else 1)

    def work(self, branch: BranchConfig) -> Work:
        """What a forward pass of a mean row takes in this branch."""
        if not self.pairs:
            return sequence_work(self.prompt + self.answer, self.answer)
        return pair_work(self.prompt, self.answer, self.answer, learns_prompt=learns_prompt(branch))


@dataclass(frozen=True)
class Typical:
    """What a data set is known to hold: rows of the training split, mean tokens of prompt and answer.

    `longest` are the tokens of its longest sequence, where they are fewer than a source's limit may be.
    """

    num: int
    prompt: float
    answer: float
    longest: float = float("inf")


HUB = {
    "HuggingFaceH4/ultrachat_200k": Typical(207_865, 550, 600),
    "HuggingFaceH4/ultrafeedback_binarized": Typical(61_135, 170, 300),
    "openai/gsm8k": Typical(7_473, 69, 126),
    "Anthropic/hh-rlhf": Typical(42_537, 127, 46),  # harmless-base
}
DEMO = {Skill.tool_call: (23.0, 23.0, 65.0), Skill.honesty: (38.0, 12.0, 82.0)}
DEMO_BYTES = {Skill.tool_call: (68.0, 68.0, 187.0), Skill.honesty: (142.0, 46.0, 305.0)}
"""The same rows as the tiny model's tokenizer counts them."""
UNKNOWN = Typical(10_000, 200, 200)
BYTES_PER_TOKEN = 4.5
"""Of a data file: English text in JSON."""
BYTES = 4.0
"""Of text in one of SmolLM2's tokens: 3.0 to 4.2 in PAFT's own rows and tasks."""


def count(data: Stage, store: Store) -> Rows:
    """The rows a data stage has written, or those it may be expected to write."""
    pairs = data.config.branch == "preference" and not data.config.unpaired
    try:
        splits = store.record(data)["metrics"]
        train, per_row = splits["train"], 2 if pairs else 1
        prompt = (train["tokens"] - train["label_tokens"]) / per_row / train["rows"]
        answer = train["label_tokens"] / per_row / train["rows"]
        held_out = splits.get("validation", {}).get("rows", 0)
        return Rows(train["rows"], prompt, answer, pairs, train["longest"], held_out)
    except (OSError, ValueError, LookupError, TypeError, ZeroDivisionError):
        rows = expected(data.config.source, data.config.model, pairs=data.config.branch == "preference")
        return in_two(rows) if data.config.unpaired else rows


def in_two(rows: Rows) -> Rows:
    """Pairs as two rows each."""
    said = tuple(f"{text}, each split in two" for text in rows.assumed)
    return replace(rows, num=2 * rows.num, held_out=2 * rows.held_out, pairs=False, assumed=said)


def expected(source: Source, model: ModelConfig, *, pairs: bool) -> Rows:
    """From what is known of the source, within the source's own limits."""
    like = typical(source, model, pairs=pairs)
    num = min(like.num, source.max_rows or like.num)
    prompt = min(like.prompt, source.max_prompt_length if pairs else source.max_length / 2)
    answer = min(like.answer, source.max_length / 2)
    longest = min(like.longest, source.max_length)
    held_out = DEMO_VALIDATION_ROWS if isinstance(source, DemoSource) else max(num // 10, 1)
    said = f"{num:,} rows of {label(source)} with {prompt:.0f} prompt and {answer:.0f} answer tokens"
    return Rows(num, prompt, answer, pairs, longest, held_out if source.has_validation else 0, (said,))


def length_factor(model: ModelConfig) -> float:
    """Tokens that the base's tokenizer makes of one of SmolLM2's."""
    return BYTES if isinstance(model, TinyModel) else 1.0


def typical(source: Source, model: ModelConfig, *, pairs: bool) -> Typical:
    """What is known of the source, in tokens of the base's tokenizer."""
    if isinstance(source, DemoSource):
        counted = DEMO_BYTES if isinstance(model, TinyModel) else DEMO
        return Typical(source.num_rows, *counted[source.skill])
    like, factor = _in_subwords(source, pairs=pairs), length_factor(model)
    return replace(
        like, prompt=factor * like.prompt, answer=factor * like.answer, longest=factor * like.longest
    )


def _in_subwords(source: Source, *, pairs: bool) -> Typical:
    match source:
        case HubSource():
            return HUB.get(source.repo, UNKNOWN)
        case FileSource():
            tokens = UNKNOWN.prompt + UNKNOWN.answer * (2 if pairs else 1)
            num = sum(path.stat().st_size for path in listed_files(source.names())) / BYTES_PER_TOKEN / tokens
            return Typical(max(1, round(num)), UNKNOWN.prompt, UNKNOWN.answer)
    return UNKNOWN


def label(source: Source) -> str:
    match source:
        case DemoSource():
            return source.skill.value
        case HubSource():
            return source.repo
        case FileSource():
            return source.title
    return "the source"
