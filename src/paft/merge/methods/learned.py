"""Coefficients of every layer, learnt on a few rows of both branches."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from paft.config import Space, Statistic, require
from paft.files.jsonfile import read_object
from paft.merge.method import Adapters, Method, Plan
from paft.merge.methods.task_arithmetic import TaskArithmetic

INPUT, FILE = "coefficients", "coefficients.json"
"""{tensor: [sft, preference]}."""


@dataclass
class Learned(
    TaskArithmetic,
    name="learned",
    title="Learned",
    source="Prabhakar et al. 2024, arXiv:2410.13025 (LoRA Soups)",
):
    """Weighted sum of the deltas, the weights of every layer learnt on a few rows of both branches.

    They start from `weights` and minimise the SFT loss plus the preference branch's own loss, on training rows.
    """

    spaces: ClassVar[tuple[Space, ...]] = (Space.delta,)
    needs: ClassVar[Statistic] = Statistic.coefficients

    num_rows: int = 64
    """Training rows of each branch that are looked at."""
    batch_size: int = 8
    """Rows of each branch in a step."""
    steps: int = 40
    """Of Adam."""
    lr: float = 0.02
    """Learning rate of Adam; coefficients are near 1."""
    preference_loss_weight: float = 1.0
    """Weight of the preference loss beside the SFT loss."""
    seed: int = 42
    """Of the draw of the rows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_rows", "batch_size", "steps", "lr"):
            require(getattr(self, name) > 0, f"merge.{name}", getattr(self, name), "positive")
        weight = self.preference_loss_weight
        require(weight >= 0, "merge.preference_loss_weight", weight, "at least 0")

    def plan(self, adapters: Adapters) -> Plan:
        raise ValueError(
            "merge=learned looks at training rows of each branch, which adapter folders alone do not bring; "
            "merge with train.py, whose coefficients stage learns them"
        )

    def informed(self, inputs: Mapping[str, Path]) -> Method:
        """Task arithmetic with the coefficients that the `coefficients` stage wrote."""
        if INPUT not in inputs:
            return self
        learnt = read_object(inputs[INPUT] / FILE)
        given = {f"^{re.escape(name)}$": weights for name, weights in learnt.items()}
        return TaskArithmetic(
            weights=self.weights,
            scale=self.scale,
            norm=self.norm,
            dtype=self.dtype,
            keep=self.keep,
            weights_by=self.weights_by | given,
        )
