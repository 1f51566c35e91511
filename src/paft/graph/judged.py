"""The stages before a judged evaluation: the model answers (`generate`), a judge reads (`judge`).

    merge ─► generate ─► judge ─► evaluate

Scores are worked out in `evaluate`, so that another figure of the same judgements asks nobody.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from paft.config.evaluate import EvaluateConfig
from paft.config.judge import AnnotationsJudge, JudgeConfig, LocalJudge
from paft.config.judged import MT_BENCH_FILES, JudgedConfig, MTBenchQuestions, Reference
from paft.files.fingerprint import file_sha256, folder_sha256
from paft.graph.configs import EvaluateStage, GenerateStage, JudgeStage
from paft.graph.stage import Stage
from paft.graph.stages import STAGES


def with_questions(evaluate: EvaluateConfig) -> EvaluateConfig:
    """A judged evaluation with the sha256 of the files it asks from. Raises `ValueError` for one that is not there."""
    if not isinstance(evaluate, JudgedConfig):
        return evaluate
    match evaluate.asked:
        case Reference(file=str(file)):
            content = file_sha256(Path(file))
            return evaluate.asking(replace(evaluate.asked, sha256=content, revision=""))
        case MTBenchQuestions(folder=folder):
            return evaluate.asking(replace(evaluate.asked, sha256=mt_bench_sha256(Path(folder))))
    return evaluate


def mt_bench_sha256(folder: Path) -> str:
    """Hex sha256 over the files of MT-Bench. Raises `ValueError` naming one that is not there."""
    return hashlib.sha256(
        "\0".join(file_sha256(folder / name) for name in MT_BENCH_FILES).encode()
    ).hexdigest()


def judged(
    scored: EvaluateStage, judge: JudgeConfig | None, model: Mapping[str, Stage[Any]]
) -> dict[str, Stage[Any]]:
    """The `judge` stage of a judged evaluation; nothing of another. `model` is the merged one, or empty."""
    evaluate = scored.evaluate
    if not isinstance(evaluate, JudgedConfig):
        return {}
    assert judge is not None, "the config refuses such an evaluation without a judge"
    asked = GenerateStage(
        scored.model,
        scored.template,
        evaluate.asked,
        evaluate.sampling,
        evaluate.batch_size,
        evaluate.seed,
        evaluate.limit,
        evaluate.dtype,
        evaluate.generation_batch_size,
    )
    answers = Stage("generate", STAGES["generate"].version, asked, model)
    compared = JudgeStage(scored.model, evaluate.asked, _with_fingerprint(judge))
    return {"judge": Stage("judge", STAGES["judge"].version, compared, {"answers": answers})}


def _with_fingerprint(judge: JudgeConfig) -> JudgeConfig:
    match judge:
        case LocalJudge():
            return replace(judge, sha256=folder_sha256(Path(judge.path)))
        case AnnotationsJudge():
            return replace(judge, sha256=file_sha256(Path(judge.file)))
    return judge
