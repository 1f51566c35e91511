"""Which columns the table has."""

from dataclasses import dataclass

from omegaconf import MISSING

from paft.config.checks import require


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
        require(0 <= self.seed < 2**32, "evaluate.seed", self.seed, "at least 0 and below 2^32")
