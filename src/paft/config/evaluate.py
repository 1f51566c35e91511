"""Which columns the table has."""

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from omegaconf import MISSING

from paft.config.checks import UNLESS_DEFAULT, Typed, incidental, require
from paft.config.model import DType


class EvaluateSplit(str, Enum):
    """Which items of a task are scored; `validation` and `test` share none.

    `full` is what the task reports. `validation` is the task's own validation split where it has one beside that, and
    `test` is then all it reports. A task without one is cut: `validation_share` of its items, drawn by `split_seed`,
    and the rest.
    """

    full = "full"
    validation = "validation"
    test = "test"


LOWER_IS_BETTER = ("bits_per_byte", "byte_perplexity", "word_perplexity", "perplexity", "brier_score", "ter")
"""lm-eval's own metrics that are better when lower; of a task's own it says so when it has scored them."""


class Rows(str, Enum):
    """A branch whose held-out rows are the items of a task."""

    sft = "sft"
    preference = "preference"


class Backend(str, Enum):
    """What computes the answers: `hf`, transformers with PAFT's fast paths; `vllm`, vLLM as lm-eval asks it."""

    hf = "hf"
    vllm = "vllm"


@dataclass
class TaskConfig(Typed):
    """One column of the results table."""

    task: str = MISSING
    """Name of a task or group of lm-eval or of `evaluate/tasks/`, or the path of a task's own .yaml file."""
    metric: str | None = None
    """Key in lm-eval's results, as `acc_norm,none`; null: the first of the task's metrics, under its first filter."""
    num_fewshot: int | None = None
    """Solved examples before each item; null: as the task says."""
    higher_is_better: bool = True
    """False where a smaller number is the better one, as of bits per byte."""
    in_average: bool = True
    """Whether the column enters the average of the row, which is better when higher: no column that is not may."""
    mean_over: str | None = None
    """Average this metric over the group's subtasks whose name starts so, each subtask counting once."""
    pooled: bool = field(default=False, metadata=UNLESS_DEFAULT)
    """With `mean_over`: every item counts once, in place of every subtask."""
    mean_with: list[str] = field(default_factory=list, metadata=UNLESS_DEFAULT)
    """Average `metric` with these other metrics of the task, each counting once."""
    above_chance: bool = field(default=False, metadata=UNLESS_DEFAULT)
    """Rescale the score of each task so that guessing among its choices gives 0 and right answers alone give 1; what is
    below guessing is 0. As the Open LLM Leaderboard v2 does."""
    above_base: bool = field(default=False, metadata=UNLESS_DEFAULT)
    """The share of items on which the model does better than the base, where equal counts half. Another column of the
    same task and metric says without it how well. Of `paft_preference`'s margin it is DPO's reward accuracy."""
    rows: Rows | None = field(default=None, metadata=UNLESS_DEFAULT)
    """The items are rows that `data.<branch>.held_out` keeps from training."""
    num_items: int | None = field(default=None, metadata=UNLESS_DEFAULT)
    """Score so many items, drawn by `split_seed`, the same for every model; null: all of the split."""

    sha256: str = field(default="", metadata=UNLESS_DEFAULT)
    """Of a task's own file, filled in when the graph is built."""

    @property
    def file(self) -> Path | None:
        """The task's own file, where it is none that lm-eval knows by name."""
        return Path(self.task) if self.task.endswith((".yaml", ".yml")) else None

    def refuse_upside_down(self, column: str) -> None:
        """Raise `ValueError` where more is taken as better of one of lm-eval's metrics that is better when lower."""
        metric = (self.metric or "").partition(",")[0]
        if self.higher_is_better and metric in LOWER_IS_BETTER:
            raise ValueError(
                f"evaluate.tasks.{column}: lower {metric} is better; "
                "set higher_is_better: false and in_average: false"
            )


def _asks(task: TaskConfig) -> tuple[object, ...]:
    """What two columns have in common that are read off the same numbers."""
    return task.task, task.metric, task.num_fewshot, task.rows


@dataclass
class EvaluateConfig(Typed):
    """The tasks a model is scored by."""

    name: str = MISSING
    """What tables call this list of tasks; part of the key."""
    tasks: dict[str, TaskConfig] = MISSING
    """Column name -> task, in table order."""
    apply_chat_template: bool = False
    """Whether items are put to the model as chats, in the template it was trained in."""
    batch_size: int = 16
    """Rows scored at once; padding makes it part of the last digits, hence of the key. On a GPU log-likelihoods take as
    many as its memory holds."""
    generation_batch_size: int | None = incidental(None)
    """Texts that are generated at once, where the likeliest token is taken each time; null: `batch_size`, as always
    where tokens are drawn."""
    limit: int | None = None
    """Use only the first so many items of each task: for trying things out, never for a result."""
    seed: int = 1234
    """Of lm-eval's random choices, such as those of the solved examples."""
    split: EvaluateSplit = field(default=EvaluateSplit.full, metadata=UNLESS_DEFAULT)
    split_seed: int = field(default=0, metadata=UNLESS_DEFAULT)
    """Of the draws of `split` and `num_items`."""
    validation_share: float = field(default=0.3, metadata=UNLESS_DEFAULT)
    """Share of a task's items that `split=validation` scores, where the task has no such split of its own."""
    dtype: DType | None = field(default=None, metadata=UNLESS_DEFAULT)
    """Type the model is loaded and computed in; null is the model's own."""
    backend: Backend = field(default=Backend.hf, metadata=UNLESS_DEFAULT)
    """`vllm` needs a GPU and its package, makes its own batches, and scores a little differently: never compare a score
    of one backend with one of the other."""
    data_dir: str | None = incidental(None)
    """A folder whose files lm-eval's tasks read in place of the hub: `<data set>/<config>/<split>.jsonl` and other
    endings, as docs/evaluation.md says. Its content is its identity; null: from the hub."""
    data_sha256: str = field(default="", metadata=UNLESS_DEFAULT)
    """Of that folder, filled in when the graph is built."""
    include_path: str | None = incidental(None)
    """A folder of lm-eval's task files, whose tasks, groups and tags columns may name. Its content is its identity."""
    include_sha256: str = field(default="", metadata=UNLESS_DEFAULT)
    """Of that folder and what its files refer to, filled in when the graph is built."""
    trust_task_code: bool = incidental(False)
    """Whether Python that the user's task files name (`!function`) may run."""
    objective: str = incidental("average")
    """The column a search makes as good as it can."""

    def __post_init__(self) -> None:
        self._require_one_draw()
        self._require_one_direction()
        self._require_plain_columns()
        allowed = ["average", *self.tasks] if isinstance(self.tasks, dict) else [self.objective]
        require(self.objective in allowed, "evaluate.objective", self.objective, f"one of {allowed}")
        require(
            0 < self.validation_share < 1, "evaluate.validation_share", self.validation_share, "in (0, 1)"
        )
        require(self.batch_size > 0, "evaluate.batch_size", self.batch_size, "positive")
        written, at = self.generation_batch_size, "evaluate.generation_batch_size"
        require(written is None or written > 0, at, written, "positive or null")
        require(self.limit is None or self.limit > 0, "evaluate.limit", self.limit, "positive or null")
        require(0 <= self.seed < 2**32, "evaluate.seed", self.seed, "at least 0 and below 2^32")

    def _require_one_draw(self) -> None:
        """Columns of one task are scored on the same items."""
        drawn: dict[str, int | None] = {}
        for column, task in self.tasks.items() if isinstance(self.tasks, dict) else ():
            name, num_items = f"evaluate.tasks.{column}.num_items", task.num_items
            require(num_items is None or num_items > 0, name, num_items, "positive or null")
            at = f"evaluate.tasks.{column}.pooled"
            require(not task.pooled or task.mean_over is not None, at, True, "false without mean_over")
            first = drawn.setdefault(task.task, num_items)
            require(num_items == first, name, num_items, f"as in the other column of {task.task}, {first}")

    @property
    def plain_columns(self) -> dict[str, str]:
        """Column with `above_base` -> the one of the same task and metric without it."""
        plain = {_asks(task): column for column, task in self.tasks.items() if not task.above_base}
        return {column: plain[_asks(task)] for column, task in self.tasks.items() if task.above_base}

    def _require_plain_columns(self) -> None:
        tasks = self.tasks if isinstance(self.tasks, dict) else {}
        plain = {_asks(task) for task in tasks.values() if not task.above_base}
        for column, task in tasks.items():
            if task.above_base and _asks(task) not in plain:
                raise ValueError(
                    f"evaluate.tasks.{column}.above_base compares items of another column: add one of "
                    f"task={task.task} and metric={task.metric} without above_base"
                )

    def _require_one_direction(self) -> None:
        """Averages, claims and searches take more as better."""
        for column, task in self.tasks.items() if isinstance(self.tasks, dict) else ():
            require(
                task.higher_is_better or not task.in_average,
                f"evaluate.tasks.{column}.in_average",
                task.in_average,
                "false where lower is better (higher_is_better: false): more is better in an average",
            )
