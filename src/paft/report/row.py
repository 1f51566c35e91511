"""One row of the report's tables: an evaluation, or the seeds of one setting together (a cell)."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

OPTION_GROUPS = ("model.", "data.", "sft.", "preference.", "merge.", "evaluate.", "judge.")
"""How the columns begin that hold options, named as on the command line."""


class Measured(NamedTuple):
    """A number and its standard error, None where nobody knows it; both in the column's own unit, shares in [0, 1]."""

    value: float
    stderr: float | None


MERGE_SEEDS = ("merge.seed", "merge.prune_seed")
"""Options that most cells draw by the seed of their trainings: then cells that differ by it alone are one."""


def follows_seed(row: Mapping[str, Any], column: str) -> bool:
    """Whether a column is the seed of a merge's draws and that of the row's trainings."""
    return column in MERGE_SEEDS and row.get(column) is not None and row.get(column) == row["seed"]


def is_option(column: str) -> bool:
    """Whether a column of results.csv holds an option by its name on the command line, as `sft.lora.rank`."""
    return column.startswith(OPTION_GROUPS) or column == "callbacks"


@dataclass(frozen=True, eq=False)
class Row(Mapping[str, Any]):
    """Frozen. Its columns are those of results.csv, as a mapping; what the report asks of every row has a type here.

    `row | more` is a new row with more columns.
    """

    columns: Mapping[str, Any]

    def __getitem__(self, column: str) -> Any:
        return self.columns[column]

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)

    def __or__(self, more: Mapping[str, Any]) -> "Row":
        return Row({**self.columns, **more})

    @property
    def base(self) -> str:
        return str(self["base"])

    @property
    def paradigm(self) -> str:
        """A member of `paft.config.Paradigm`."""
        return str(self["paradigm"])

    @property
    def merge(self) -> str:
        """The merge method's name on the command line; empty without a merge, a type's name where it has no other."""
        return str(self["merge"] or "")

    @property
    def preference(self) -> str:
        """The objective's name on the command line; empty without preference training."""
        return str(self["preference"] or "")

    @property
    def weight(self) -> float | None:
        """lambda, the L1 weight of SFT; None without SFT."""
        value = self["lambda"]
        return None if value is None else float(value)

    @property
    def norm(self) -> str:
        """`merge.norm` of a merge of two branches, `own` by default; empty of any other row."""
        return str(self.get("norm") or "")

    def taken(self, branch: str) -> str:
        """What a branch that was taken, not trained, is called; empty where it was trained, or there is none."""
        return str(self.get(f"{branch}.adapter") or self.get(f"{branch}.checkpoint") or "")

    @property
    def merged(self) -> bool:
        """Whether two branches were trained side by side and merged."""
        return self.paradigm == "parallel"

    @property
    def trained_first(self) -> str:
        """The branch that the other one was trained on top of; empty where neither was."""
        firsts = {"sequential": "sft", "expo": "sft", "preference_first": "preference"}
        return firsts.get(self.paradigm, "")

    @property
    def is_cell(self) -> bool:
        """Whether the row stands for all seeds of a setting."""
        return "seeds" in self

    @property
    def num_seeds(self) -> int:
        """Of a cell; 1 of an evaluation."""
        return int(self.get("num_seeds") or 1)

    @property
    def seed(self) -> int | None:
        """Of an evaluation: what its adapters were trained with; None of the base."""
        value = self["seed"]
        return None if value is None else int(value)

    @property
    def is_trained(self) -> bool:
        return self["seed"] is not None

    @property
    def family(self) -> str:
        """What the evaluations that differ by their seed alone have in common."""
        return str(self["family"])

    @property
    def evaluate_key(self) -> str:
        return str(self["evaluate_key"])

    @property
    def evaluate_keys(self) -> tuple[str, ...]:
        """Of every seed of a cell; of an evaluation, its own."""
        return tuple(str(self.get("evaluate_keys") or self.evaluate_key).split())

    def key(self, stage: str) -> str:
        """The key of the row's stage of that name, empty where it has none."""
        return str(self[f"{stage}_key"] or "")

    def measured(self, column: str) -> Measured | None:
        """A score or measure with its standard error; None where the row has no such finite number."""
        value, stderr = (finite(self.get(name)) for name in (column, f"{column}_stderr"))
        return None if value is None else Measured(value, stderr)

    def option(self, name: str) -> Any:
        """An option by its name on the command line; None where the row has none of that name."""
        value = self.get(name)
        return None if value in (None, "") else value

    @property
    def options(self) -> list[str]:
        """Names of the options the row has a value for."""
        return [name for name in self if is_option(name) and self.option(name) is not None]


def finite(value: Any) -> float | None:
    """`value` as a finite float, or None."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
