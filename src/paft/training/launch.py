"""Where a training stage runs: here on one device, or as a child of its own on several.

Lightning starts extra ranks by running the script again, which inside a Hydra multirun means running the
whole grid again. So several devices get a `torchrun` child that knows one stage and nothing of Hydra.
"""

from pathlib import Path
from typing import Any

from paft.run import Context
from paft.stage import Stage


def train(stage: Stage, inputs: dict[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Run the stage's training into `out`; returns the metrics for stage.json."""
    from paft.training.fit import fit

    return fit(stage, inputs, out, context)
