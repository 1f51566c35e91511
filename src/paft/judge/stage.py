"""The `judge` stage: a model's answers in, annotations.json in alpaca-eval's format out."""

from pathlib import Path
from typing import Any

from paft.files.jsonfile import write_json
from paft.graph.configs import JudgeStage
from paft.graph.stage import Stage
from paft.judge.judging import annotate
from paft.judge.outputs import pairs, read_outputs
from paft.judge.reference import read_reference
from paft.proof.record import device_of
from paft.store.context import Context

OUTPUTS, ANNOTATIONS = "outputs.json", "annotations.json"
"""What a `generate` folder holds, and a `judge` folder."""


def run(stage: Stage[JudgeStage], inputs: dict[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Judge each answer of the `answers` among the inputs; returns how many, and what it took."""
    config = stage.config
    outputs = read_outputs(inputs["answers"] / OUTPUTS, "the generate stage's")
    reference = read_reference(config.reference, offline=context.running.offline)
    names = tuple(str(next(iter(rows.values())).get("generator") or "") for rows in (reference, outputs))
    judged = annotate(
        pairs(outputs, reference),
        config.judge,
        context.store.root,
        (names[0] or "reference", names[1] or "model"),
        device=device_of(context.running.trainer),
    )
    write_json(out / ANNOTATIONS, judged.rows)
    return judged.counts
