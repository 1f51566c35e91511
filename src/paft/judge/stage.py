"""The `judge` stage: a model's answers in, annotations.json out: in alpaca-eval's format, or a rating of each turn."""

from pathlib import Path
from typing import Any

from paft.config import JudgeConfig
from paft.config.judge import AskedJudge
from paft.config.judged import MTBenchQuestions, Questions, Reference
from paft.files.jsonfile import write_json
from paft.graph.configs import JudgeStage
from paft.graph.stage import Stage
from paft.judge.judging import Judgements, annotate, rate
from paft.judge.mt_bench import read_data
from paft.judge.outputs import pairs, read_outputs, read_rows
from paft.judge.questions import read_reference
from paft.proof.record import device_of
from paft.store.context import Context

OUTPUTS, ANNOTATIONS = "outputs.json", "annotations.json"
"""What a `generate` folder holds, and a `judge` folder."""


def run(stage: Stage[JudgeStage], inputs: dict[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Judge each answer of the `answers` among the inputs; returns how many, and what it took."""
    config = stage.config
    judged = judge(inputs["answers"] / OUTPUTS, config.questions, config.judge, context)
    write_json(out / ANNOTATIONS, judged.rows)
    return judged.counts


def judge(outputs: Path, questions: Questions, config: JudgeConfig, context: Context) -> Judgements:
    store, device = context.store.root, device_of(context.running.trainer)
    match questions:
        case Reference():
            reference = read_reference(questions, offline=context.running.offline)
            answers = read_outputs(outputs, "the generate stage's")
            first, second = (next(iter(rows.values())).get("generator") for rows in (reference, answers))
            names = (str(first or "reference"), str(second or "model"))
            return annotate(pairs(answers, reference), config, store, names, device=device)
        case MTBenchQuestions():
            assert isinstance(config, AskedJudge), "the config refuses another one"
            rows = read_rows(outputs, "the generate stage's", ("category",))
            return rate(rows, read_data(Path(questions.folder)), config, store, device=device)
    raise TypeError(f"unknown questions {type(questions).__name__}")
