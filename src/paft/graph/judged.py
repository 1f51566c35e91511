"""The stages before a judged evaluation: the model answers (`generate`), a judge compares (`judge`).

                ┌────────────► evaluate
merge ─► generate ─► judge ─────┘
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from paft.config.evaluate import EvaluateConfig
from paft.config.judge import AlpacaEvalConfig, AnnotationsJudge, JudgeConfig, LocalJudge
from paft.files.fingerprint import file_sha256, folder_sha256
from paft.graph.configs import EvaluateStage, GenerateStage, JudgeStage
from paft.graph.stage import Stage
from paft.graph.stages import STAGES


def with_reference(evaluate: EvaluateConfig) -> EvaluateConfig:
    """A judged evaluation with the sha256 of its reference's file. Raises `ValueError` for one that is not there."""
    if not isinstance(evaluate, AlpacaEvalConfig) or evaluate.reference.file is None:
        return evaluate
    content = file_sha256(Path(evaluate.reference.file))
    return replace(evaluate, reference=replace(evaluate.reference, sha256=content, revision=""))


def judged(
    scored: EvaluateStage, judge: JudgeConfig | None, model: Mapping[str, Stage[Any]]
) -> dict[str, Stage[Any]]:
    """The `judge` stage of a judged evaluation; nothing of another. `model` is the merged one, or empty."""
    evaluate = scored.evaluate
    if not isinstance(evaluate, AlpacaEvalConfig):
        return {}
    assert judge is not None, "the config refuses such an evaluation without a judge"
    asked = GenerateStage(
        scored.model,
        scored.template,
        evaluate.reference,
        evaluate.sampling,
        evaluate.batch_size,
        evaluate.seed,
        evaluate.limit,
        evaluate.dtype,
    )
    answers = Stage("generate", STAGES["generate"].version, asked, model)
    compared = JudgeStage(scored.model, evaluate.reference, _with_fingerprint(judge))
    return {"judge": Stage("judge", STAGES["judge"].version, compared, {"answers": answers})}


def _with_fingerprint(judge: JudgeConfig) -> JudgeConfig:
    match judge:
        case LocalJudge():
            return replace(judge, sha256=folder_sha256(Path(judge.path)))
        case AnnotationsJudge():
            return replace(judge, sha256=file_sha256(Path(judge.file)))
    return judge
